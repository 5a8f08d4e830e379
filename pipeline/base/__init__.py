"""What every room may use and nothing that knows images: errors and codes, words for quantities, Ray, this machine."""
