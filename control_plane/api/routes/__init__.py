"""The routes, by what they are about: runs, sweeps, series, streams, the catalog, observing."""
