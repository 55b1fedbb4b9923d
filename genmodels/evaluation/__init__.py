"""Numbers and pages about a model: metrics of images, and the report that shows them."""
