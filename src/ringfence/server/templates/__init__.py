"""Templates that users build over the API: their names and tags, their builds, and the files they copy."""
