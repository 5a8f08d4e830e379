"""The library: the way of one image from source to calibrated probability, without command line or HTTP.

Read in this order: config -> storage -> listing, archives, manifest -> images -> data -> models -> training ->
bundle -> predictor -> metrics, report; `scoring` puts listing, images and predictor together for whole archives.
"""

__version__ = "0.1.0"
