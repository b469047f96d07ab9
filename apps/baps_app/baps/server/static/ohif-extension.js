// An extension for OHIF 3.9, the version in MONAI Label. The server adds it to OHIF's configuration.
//
// - It shows the notes of a reply and the messages of refused requests, which MONAI Label's panel drops.
// - It hides links of the panel that lead nowhere: to the log of the server, which only its operator can read, and to the
//   address of the PACS, which browsers need not reach.
// - It fixes "Export DICOM SEG", which otherwise
//   - fails: OHIF has two commands of this name, and runs the one that does not get the place to store;
//   - mirrors the mask along the slices if the series is numbered in the direction of its normal: OHIF assigns the masks,
//     which are in the order of the images, to the images sorted by position, the farthest along the normal first.

const only = sequence => (Array.isArray(sequence) ? sequence[0] : sequence);
const dot = (a, b) => a.reduce((sum, value, n) => sum + value * b[n], 0);
const cross = ([a, b, c], [d, e, f]) => [b * f - c * e, c * d - a * f, a * e - b * d];

/** Assign each frame of a DICOM SEG, which OHIF made from a segmentation, to the image that it was drawn on. */
function assignFramesToImages(dataset, segmentationId) {
  const { imageIds } = cornerstoneTools.segmentation.state.getSegmentation(segmentationId).representationData.Labelmap;
  const images = imageIds.map(id => {
    const { referencedImageId } = cornerstone.cache.getImage(id);
    const { imagePositionPatient, rowCosines, columnCosines } = cornerstone.metaData.get('imagePlaneModule', referencedImageId);
    const uid = cornerstone.metaData.get('sopCommonModule', referencedImageId).sopInstanceUID;
    return { uid, position: imagePositionPatient, along: dot(cross(rowCosines, columnCosines), imagePositionPatient) };
  });
  const byPosition = [...images].sort((a, b) => b.along - a.along);
  for (const frame of dataset.PerFrameFunctionalGroupsSequence) {
    const source = only(only(frame.DerivationImageSequence).SourceImageSequence);
    const drawnOn = images[byPosition.findIndex(image => image.uid === source.ReferencedSOPInstanceUID)];
    source.ReferencedSOPInstanceUID = drawnOn.uid;
    frame.PlanePositionSequence = { ImagePositionPatient: [...drawnOn.position] };
    const content = only(frame.FrameContentSequence);
    content.DimensionIndexValues = [content.DimensionIndexValues[0], byPosition.indexOf(drawnOn) + 1];
  }
  return dataset;
}

/** Show the message of each refused request of a user to MONAI Label, and the notes of each reply. */
function showReplies(show) {
  const open = XMLHttpRequest.prototype.open;
  XMLHttpRequest.prototype.open = function (method, ...rest) {
    this.addEventListener('load', () => {
      // The panel itself asks by GET whether a training runs, and gets an error if none does.
      if (method.toUpperCase() === 'GET' || !/\/(infer|train|activelearning|datastore|proxy\/dicom)\//.test(this.responseURL)) {
        return;
      }
      const notes = this.getResponseHeader('X-BAPS-Notes');
      if (this.status >= 400 && !/\/proxy\/dicom\//.test(this.responseURL)) {
        const text = this.responseType === 'arraybuffer' ? new TextDecoder().decode(this.response) : this.response;
        const { detail } = typeof text === 'string' ? JSON.parse(text) : text;
        show(typeof detail === 'string' ? detail : JSON.stringify(detail), 'error');
      } else if (notes) {
        show(decodeURIComponent(notes), 'info');
      }
    });
    return open.call(this, method, ...rest);
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
    // Later than the panel's own message, because the last message is on top.
    showReplies((message, type) => setTimeout(show, 500, message, type));
    const run = commandsManager.runCommand.bind(commandsManager);
    commandsManager.runCommand = (name, options = {}, context) => {
      if (name !== 'storeSegmentation') {
        return run(name, options, context);
      }
      const [pacs] = extensionManager.getActiveDataSource();
      const dicom = dataset => pacs.store.dicom(assignFramesToImages(dataset, options.segmentationId));
      return run(name, { ...options, dataSource: { ...pacs, store: { ...pacs.store, dicom } } }, context);
    };
  },
});

// Set the address of this server in MONAI Label's panel, which would otherwise suggest port 8000 of this host.
const server = window.config.routerBasename.replace(/ohif\/$/, '');
document.cookie = `MONAILABEL_SERVER_URL=${escape(location.origin + server)}`;

// The page of OHIF stays open. Redirect to the login page when the user is no longer signed in.
(() => {
  const check = async () => {
    const reply = await fetch(`${server}auth/token/valid`, { cache: 'no-store' });
    await reply.text(); // Over HTTP/2, a response that is not read stays open.
    if (reply.status === 401) {
      location.assign(`${server}login?next=${encodeURIComponent(location.pathname + location.search)}`);
    }
  };
  check();
  window.addEventListener('focus', check);
})();
