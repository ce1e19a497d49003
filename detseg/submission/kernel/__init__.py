"""A Kaggle notebook that submits trained models: made (`bundle`), run on Kaggle (`run`), tried here (`check`), sent."""
