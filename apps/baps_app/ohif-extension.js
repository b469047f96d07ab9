// Added to the configuration of the OHIF that MONAI Label brings (3.9).
// Its "Export DICOM SEG" fails: of two commands of one name the one that is run was not told where to store.
window.config.extensions.push({
  id: 'baps-export-segmentation',
  preRegistration({ commandsManager, extensionManager }) {
    const run = commandsManager.runCommand.bind(commandsManager);
    commandsManager.runCommand = (name, options = {}, context) => {
      const untold = name === 'storeSegmentation' && !options.dataSource;
      return run(name, untold ? { ...options, dataSource: extensionManager.getActiveDataSource()[0] } : options, context);
    };
  },
});
