"""Documents for a study or a regulator, filled as far as a run can: CLAIM, TRIPOD+AI, STARD-AI, FDA's plan.

`facts` says what the run knows, `checklists` which item asks for which fact, `flow` draws where the images went.
"""
