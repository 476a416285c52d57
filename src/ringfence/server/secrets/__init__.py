"""Secrets of tenants: kept encrypted, written and never read back, filled in by the egress on the way out."""
