"""Speed, memory and scaling, measured against others who do the same work; read in this order:

    inputs      the same JPEGs, archives and model weights for everybody
    measure     one definition of 'steady' and of 'whole job'; medians; Markdown tables
    ours, rival_ray_template, rival_dataloader, rival_daft     one contender a script, each runs alone
    limit, limit_variants     what the machine can do at most: no framework, no output
    bench, bench_score        the commands that run them side by side
    train_inputs, train_timeline, train_measure   the same for training: images, moments, figures and table
    train_recipe              network, images and optimizer of the rivals
    train_rival_ddp, train_rival_lightning        one rival a script
    bench_train               the command that runs them beside `leukoray train`

Everything here is measured on synthetic images and says nothing about real blood.
"""
