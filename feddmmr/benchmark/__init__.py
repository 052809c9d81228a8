"""`feddmmr benchmark`: figures on many datasets, that others can line up."""
