"""Every item as a candidate for many users: scores of whole catalogues by the mixture."""
