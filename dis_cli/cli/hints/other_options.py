"""Options of other trainers and samplers, with their equivalents here.

One table for all commands: of the answers of a row, the first one counts that the command can take.
"""

import re
from typing import Final, NamedTuple

from dis_cli.cli.hints.fitted import Taken

# What a command that does not train has no use for.
_TRAINING = re.compile(r"`(?:train|model|diffusion|name)[.=]")
_OPTION = re.compile(r"`(--?[a-z-]+)")


class Answer(NamedTuple):
    """The words to type instead.

    Attributes:
        text: Words to type, in backticks, alone or in a sentence. ``{command}`` stands for the command's name.
        commands: The commands that it is for; empty for all that take what it names.
    """

    text: str
    commands: tuple[str, ...] = ()


_TOGETHER = ("train", "sample", "eval-fid", "encode-latents")
_ONE_A_GPU = Answer("Start one process for each GPU: `torchrun --nproc-per-node VALUE -m dis_cli {command}`", _TOGETHER)

# Names without dashes and with underscores.
ROWS: Final[tuple[tuple[str, tuple[str | Answer, ...]], ...]] = (
    # How long, how fast, how much at a time
    ("lr learning_rate base_lr peak_lr max_lr", ("`train.lr=VALUE`",)),
    ("min_lr lr_min final_lr", ("The lowest learning rate is a share of the peak: `train.min_lr_ratio=SHARE`",)),
    (
        "epochs epoch num_epochs max_epochs n_epochs num_train_epochs total_epochs",
        ("Training is counted in steps, which are epochs x images / train.batch_size: `train.steps=VALUE`",),
    ),
    ("kimg total_kimg", ("Training is counted in steps, kimg x 1000 / train.batch_size: `train.steps=VALUE`",)),
    (
        "steps max_steps num_steps train_steps max_train_steps total_steps iterations iters n_iters num_iters "
        "max_iters max_iter niter",
        ("`train.steps=VALUE`", "`--steps VALUE`"),
    ),
    (
        "sampling_steps num_sampling_steps sample_steps inference_steps num_inference_steps ddim_steps nfe "
        "timestep_respacing",
        ("`--steps VALUE`", "`sample.steps=VALUE`"),
    ),
    (
        "batch_size",
        (
            "`--batch-size VALUE`",
            "`--batch VALUE`",
            "`train.batch_size=VALUE` or `sample.batch_size=VALUE`",
            "`sample.batch_size=VALUE`",
        ),
    ),
    (
        "batch bs train_batch_size global_batch_size total_batch_size per_proc_batch_size eval_batch_size b",
        ("`--batch-size VALUE`", "`--batch VALUE`", "`train.batch_size=VALUE`", "`sample.batch_size=VALUE`"),
    ),
    (
        "accumulation grad_accum grad_accumulation gradient_accumulation gradient_accumulation_steps accum_iter "
        "accumulation_steps accumulate_grad_batches",
        ("A batch in equal parts: `train.accumulation=PARTS`",),
    ),
    ("warmup warmup_steps lr_warmup_steps num_warmup_steps", ("`train.warmup_steps=VALUE`",)),
    ("lr_scheduler lr_schedule lr_decay", ("`train.lr_schedule=NAME`",)),
    ("wd weight_decay adam_weight_decay", ("`train.weight_decay=VALUE`",)),
    ("betas beta1 beta2 adam_beta1 adam_beta2", ("`train.betas=0.9,0.999`",)),
    ("optimizer optim", ("AdamW it is, with `train.lr=VALUE`, `train.betas=0.9,0.999`, `train.weight_decay=VALUE`",)),
    ("clip_grad grad_clip clip_norm max_grad_norm clip_grad_norm gradient_clip_val", ("`train.clip_norm=VALUE`",)),
    ("ema ema_decay ema_rate ema_beta use_ema", ("`train.ema_decay=VALUE`", "`sample.ema=DECAY`")),
    ("max_minutes time_limit max_time max_hours", ("`train.max_minutes=VALUE`",)),
    # Where a run begins, and how it goes on
    (
        "resume resume_from resume_from_checkpoint resume_checkpoint auto_resume continue",
        (
            Answer("The same command continues what it began: leave it out", ("train", "encode-latents")),
            "`--ckpt PATH`",
        ),
    ),
    (
        "init_from init_weights from pretrained from_pretrained finetune load load_from ckpt checkpoint ckpt_path "
        "checkpoint_path model_path model_dir weights network",
        (
            "`--init PATH`",
            "`--ckpt PATH`",
            Answer("`--vae DIR`", ("encode-latents",)),
        ),
    ),
    ("fork fork_from branch_from continue_from", ("`--branch RUN`",)),
    ("overwrite force restart reset overwrite_output_dir", ("`--fresh`",)),
    (
        "save_every save_interval save_steps save_freq ckpt_every checkpoint_every checkpointing_steps snap",
        ("`train.save_every=VALUE`",),
    ),
    ("log_every log_interval log_freq logging_steps print_every print_freq", ("`train.log_every=VALUE`",)),
    ("sample_every sample_interval preview_every validation_steps", ("`train.preview_every=VALUE`",)),
    ("eval_every eval_interval eval_steps evaluate_every eval_freq", ("`train.evaluate_every=VALUE`",)),
    # Where things are, and what they are called
    (
        "output output_dir output_path outdir out_dir outfile save_dir save_path results_dir result_dir workdir "
        "work_dir logdir log_dir logging_dir exp_dir run_dir sample_dir default_root_dir",
        ("`--out PATH`",),
    ),
    (
        "name run_name exp_name exp experiment experiment_name run",
        ("The run is written to runs/NAME with `name=NAME`, or to `--out DIR`", "`--ckpt PATH`"),
    ),
    (
        "real real_path reference ref_path ref_batch ref_dir stats fid_stats fid_ref",
        ("`--ref PATH`",),
    ),
    ("fake fake_path fakes gen generated gen_dir samples image_path", ("`--images PATH`",)),
    (
        "data_dir data_path data_root dataset_path dataset_dir train_data_dir train_dir image_dir image_folder "
        "images folder root input input_dir imagenet_path datadir",
        ("`--data PATH`",),
    ),
    (
        "dataset dataset_name data_type source",
        ("`--source NAME`", "Its kind is `data.source=NAME`, and where it is `--data PATH`"),
    ),
    ("config cfg_file config_file yaml arch model model_name", ("`--preset NAME`", "`--vae DIR`", "`--size SIZE`")),
    ("vae vae_path vae_dir vae_model first_stage", ("`--vae DIR`", "`codec.vae=DIR`")),
    # The machine
    (
        "num_workers workers n_workers nworkers num_loader_workers dataloader_num_workers j",
        ("`--num-workers VALUE`", Answer("`data.num_workers=VALUE`", ("train",))),
    ),
    (
        "gpus num_gpus n_gpus ngpus devices nproc nproc_per_node num_processes world_size nodes nnodes num_nodes "
        "multi_gpu ddp distributed",
        (_ONE_A_GPU,),
    ),
    ("gpu gpu_id gpu_ids cuda accelerator local_rank", ("`--device cuda:0`",)),
    ("cpu no_cuda", ("`--device cpu`",)),
    (
        "precision mixed_precision amp bf16 fp16 half use_fp16 use_bf16 autocast",
        (
            Answer("`--dtype float16`", ("encode-latents",)),
            Answer("`--dtype bf16`", ("checkpoint export",)),
            "`train.precision=bf16`",
            "`sample.precision=bf16`",
        ),
    ),
    (
        "fp32 no_amp",
        (
            Answer("`--dtype float32`", ("encode-latents",)),
            Answer("`--dtype fp32`", ("checkpoint export",)),
            "`train.precision=fp32`",
            "`sample.precision=fp32`",
        ),
    ),
    ("compile torch_compile use_compile", ("`train.compile=true`", "`--compile`")),
    (
        "gradient_checkpointing grad_checkpointing grad_checkpoint use_checkpoint activation_checkpointing",
        ("`train.gradient_checkpointing=true`",),
    ),
    ("fsdp deepspeed zero", ("`train.sharding=fsdp`",)),
    ("random_seed global_seed manual_seed rng_seed", ("`--seed VALUE`",)),
    # Watching
    ("wandb use_wandb report_to logger tracker trackers wandb_project project", ("`train.trackers=wandb`",)),
    ("tensorboard use_tensorboard tb", ("`train.trackers=tensorboard`",)),
    ("debug", ("`--verbose` tells more; with DIS_DEBUG=1 in the environment, errors come with a traceback",)),
    # The model
    (
        "image_size size resolution img_size image_resolution img_resolution res sz",
        (
            "`--image-size PIXELS`",
            "The side of the grid, which for a model of latents is an eighth of the image's: `model.image_size=VALUE`",
        ),
    ),
    ("patch_size patch", ("`--patch VALUE`", "`model.patch_size=VALUE`")),
    ("classes num_classes n_classes nb_classes class_cond", ("`--classes VALUE`", "`model.num_classes=VALUE`")),
    ("depth layers num_layers n_layers", ("`model.depth=VALUE`",)),
    ("width dim hidden_size hidden_dim embed_dim model_channels num_channels", ("`model.embed_dim=VALUE`",)),
    ("heads num_heads n_heads", ("`model.num_heads=VALUE`",)),
    ("channels in_channels", ("`model.in_channels=VALUE`",)),
    ("label_drop class_dropout_prob uncond_prob p_uncond cond_drop_prob", ("`model.label_drop=VALUE`",)),
    ("timesteps num_timesteps diffusion_steps noise_steps", ("`diffusion.num_timesteps=VALUE`",)),
    ("noise_schedule beta_schedule", ("`diffusion.schedule=NAME`",)),
    (
        "hflip flip random_flip horizontal_flip mirror xflip",
        (
            Answer("Mirrored images are encoded too, unless `--no-flip` is given", ("encode-latents",)),
            Answer("`data.hflip=true`", ("train",)),
        ),
    ),
    # How images are generated, and scored
    (
        "cfg cfg_scale guidance guidance_scale scale w",
        (Answer("`--cfg`", ("flops",)), "`--cfg-scale VALUE`", "`sample.cfg_scale=VALUE`"),
    ),
    ("scheduler solver sample_method sampling_method", ("`--sampler NAME`", "`train.lr_schedule=NAME`")),
    ("sampler", ("`sample.sampler=NAME`",)),
    (
        "num_samples n_samples num_sample num_images n_images count num_fid_samples num total_samples",
        (Answer("`-n VALUE`", ("sample", "eval-fid", "encode-latents")),),
    ),
    ("label labels class_id class_ids class_label class_labels class_idx prompt cond y", ("`--class CLASS`",)),
    ("metric fid kid", ("`--metrics NAME`",)),
)

_ANSWERS: Final = {name: answers for names, answers in ROWS for name in names.split()}


def answer(option: str, taken: Taken) -> str | None:
    """The words to type instead of an option that a command does not have; None when the table has no answer.

    Args:
        option: As it was typed, with its dashes, without a value.
    """
    name = option.lstrip("-").replace("-", "_").lower()
    for candidate in _ANSWERS.get(name, ()):
        text, commands = (candidate, ()) if isinstance(candidate, str) else candidate
        if _is_for(text, commands, taken):
            return _sentence(text.format(command=taken.name))
    return None


def _is_for(text: str, commands: tuple[str, ...], taken: Taken) -> bool:
    if commands:
        return taken.name in commands
    if any(option not in taken.options for option in _OPTION.findall(text)):
        return False
    if "=" not in text:
        return True
    return taken.settings and (taken.name == "train" or not _TRAINING.search(text))


def _sentence(text: str) -> str:
    if text.startswith("`-"):
        return f"Write {text}."
    return f"Settings are given as KEY=VALUE: {text}." if text.startswith("`") else f"{text}."
