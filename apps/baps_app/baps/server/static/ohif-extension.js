// Added to the configuration of the OHIF that MONAI Label brings (3.9).
//
// What the server says beside a mask, or of a request that it refuses, is shown; MONAI Label's panel drops it.
//
// Links of the panel that lead nowhere are hidden: to the server's log, which is its operator's, and to the PACS's own
// address, which browsers need not reach.
//
// "Export DICOM SEG" is mended, which
// - fails: of two commands of one name, the one that is run is not told where to store;
// - mirrors the mask along the slices of a series that is numbered the way its normal points: it lays the masks, which are
//   in the order of the images, on the images in the order of their places, the farthest along the normal first.

const only = sequence => (Array.isArray(sequence) ? sequence[0] : sequence);
const dot = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0);
const cross = ([a, b, c], [d, e, f]) => [b * f - c * e, c * d - a * f, a * e - b * d];

/** Lay every frame of a DICOM SEG, made of a segmentation of the viewer, on the image that it was drawn on. */
function layOnImages(dataset, segmentationId) {
  const { imageIds } = cornerstoneTools.segmentation.state.getSegmentation(segmentationId).representationData.Labelmap;
  const images = imageIds.map(id => {
    const { referencedImageId } = cornerstone.cache.getImage(id);
    const { imagePositionPatient, rowCosines, columnCosines } = cornerstone.metaData.get('imagePlaneModule', referencedImageId);
    const uid = cornerstone.metaData.get('sopCommonModule', referencedImageId).sopInstanceUID;
    return { uid, position: imagePositionPatient, along: dot(cross(rowCosines, columnCosines), imagePositionPatient) };
  });
  const byPlace = [...images].sort((a, b) => b.along - a.along);
  for (const frame of dataset.PerFrameFunctionalGroupsSequence) {
    const source = only(only(frame.DerivationImageSequence).SourceImageSequence);
    const drawnOn = images[byPlace.findIndex(image => image.uid === source.ReferencedSOPInstanceUID)];
    source.ReferencedSOPInstanceUID = drawnOn.uid;
    frame.PlanePositionSequence = { ImagePositionPatient: [...drawnOn.position] };
    const content = only(frame.FrameContentSequence);
    content.DimensionIndexValues = [content.DimensionIndexValues[0], byPlace.indexOf(drawnOn) + 1];
  }
  return dataset;
}

/** Tell of every answer to what a user asked of MONAI Label that is a refusal or has something to say beside its mask. */
function onAnswer(tell) {
  const open = XMLHttpRequest.prototype.open;
  XMLHttpRequest.prototype.open = function (method, ...given) {
    this.addEventListener('load', () => {
      // The panel looks by itself whether a training runs: by GET, and an error where none does.
      if (method.toUpperCase() === 'GET' || !/\/(infer|train|activelearning|datastore|proxy\/dicom)\//.test(this.responseURL)) {
        return;
      }
      const notes = this.getResponseHeader('X-BAPS-Notes');
      if (this.status >= 400 && !/\/proxy\/dicom\//.test(this.responseURL)) {
        const text = this.responseType === 'arraybuffer' ? new TextDecoder().decode(this.response) : this.response;
        const { detail } = typeof text === 'string' ? JSON.parse(text) : text;
        tell(typeof detail === 'string' ? detail : JSON.stringify(detail), 'error');
      } else if (notes) {
        tell(decodeURIComponent(notes), 'info');
      }
    });
    return open.call(this, method, ...given);
  };
}

const style = document.createElement('style');
style.textContent = `
  a[href$="logs/?lines=100"], b:has(+ a[href$="logs/?lines=100"]) { display: none; }
  .nextSampleForm a { color: inherit; pointer-events: none; }
`;
document.head.append(style);

window.config.extensions.push({
  id: 'baps',
  preRegistration({ commandsManager, extensionManager, servicesManager }) {
    const show = (message, type) =>
      servicesManager.services.uiNotificationService.show({ title: 'MONAI Label', message, type, duration: 15000 });
    // Later than the panel's own message, for the last one lies on top.
    onAnswer((message, type) => setTimeout(show, 500, message, type));
    const run = commandsManager.runCommand.bind(commandsManager);
    commandsManager.runCommand = (name, options = {}, context) => {
      if (name !== 'storeSegmentation') {
        return run(name, options, context);
      }
      const [pacs] = extensionManager.getActiveDataSource();
      const dicom = dataset => pacs.store.dicom(layOnImages(dataset, options.segmentationId));
      return run(name, { ...options, dataSource: { ...pacs, store: { ...pacs.store, dicom } } }, context);
    };
  },
});

// The address of this server, for MONAI Label's panel, which would suggest port 8000 of this host.
const server = window.config.routerBasename.replace(/ohif\/$/, '');
document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + server)}`;

// OHIF's page stays open: whoever is no longer signed in is sent to the login page.
(() => {
  const check = async () => {
    const reply = await fetch(`${server}auth/token/valid`, { cache: 'no-store' });
    await reply.text(); // Over HTTP/2 an answer that is not read stays open.
    if (reply.status === 401) {
      location.assign(`${server}login?next=${encodeURIComponent(location.pathname + location.search)}`);
    }
  };
  check();
  window.addEventListener('focus', check);
})();
