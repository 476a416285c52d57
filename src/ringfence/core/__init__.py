"""What every part shares: settings, errors, ids, logging. Knows nothing of the other packages."""
