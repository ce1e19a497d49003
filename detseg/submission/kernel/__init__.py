"""A Kaggle notebook that submits trained models: built (`bundle`), run on Kaggle (`run`), tested here (`check`)."""
