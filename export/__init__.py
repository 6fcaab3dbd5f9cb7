"""From a torch checkpoint to a bundle. The only place that imports torch."""
