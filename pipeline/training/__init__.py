"""Data-parallel training on Ray Train, from labelled rows to a published bundle.

Read in this order: settings -> order (which images make a step) -> pixel_file, cache, filling, supply (every image
decoded once) -> shard (one rank's images, held or streamed) -> objective (loss, learning rate), teacher -> epoch (its
steps), speed -> statistics (of normalization), validation (every image once, gathered), suspicion -> checkpoint -> loop
(one worker) -> group (Ray Train's workers) -> progress (events), display, preview, board, tracking, records (what a
person sees) -> fit (the driver) -> graphs, publish (the bundle). Beside them features, linear, probe: a head alone,
without steps; and search_space, search_report, search_folder, search: many runs, to choose settings by.
"""
