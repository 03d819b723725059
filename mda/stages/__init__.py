"""The stages of an experiment, each an artifact of the store; `mda.pipeline` names their order."""
