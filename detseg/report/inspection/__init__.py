"""The page of `detseg inspect_data`: figures and tables come from its report only, pictures from the data set."""
