"""The Ray Serve application: routes, guards, batching and the page."""
