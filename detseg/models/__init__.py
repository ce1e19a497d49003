"""Models: from images to named losses or to Predictions. See base.py for the contract and table.py for the names."""
