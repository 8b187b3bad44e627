"""The reference's training runs, translated to this package's step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dinov2_jax import sharding
from dinov2_jax.convert import names
from dinov2_jax.data import batch as contract
from dinov2_jax.models import dino, heads, vit
from dinov2_jax.train import optim, schedules, state, step


def close(got, want, tolerance, relative=0.0):
    """Equal within an absolute tolerance (or a relative one where given)."""
    np.testing.assert_allclose(np.asarray(got), want, atol=tolerance, rtol=relative)


def schedules_of(cfg: dict, epoch: int) -> dict[str, schedules.Schedule]:
    """Our schedules for the reference's numbers; lengths of cfg are in epochs."""
    steps = cfg["epochs"] * epoch
    warmup = cfg["warmup_epochs"] * epoch
    temp_steps = cfg["warmup_teacher_temp_epochs"] * epoch
    lr = functools.partial(
        schedules.cosine, cfg["lr"], cfg["min_lr"], steps, warmup=warmup
    )
    return {
        "lr": lr(),
        "last_layer_lr": lr(freeze=cfg["freeze_last_layer_epochs"] * epoch),
        "weight_decay": schedules.cosine(
            cfg["weight_decay"], cfg["weight_decay_end"], steps
        ),
        "ema_rate": schedules.cosine(
            1 - cfg["momentum_teacher"], 1 - cfg["final_momentum_teacher"], steps
        ),
        "teacher_temp": schedules.cosine(
            cfg["teacher_temp"],
            cfg["teacher_temp"],
            temp_steps,
            warmup=temp_steps,
            start=cfg["warmup_teacher_temp"],
        ),
    }


class Golden:
    """One run of the reference, on this device or over a mesh."""

    def __init__(self, arrays, stem, mesh: Mesh | None = None, **backbone):
        self.mesh, self.changes = mesh, backbone
        self.data = arrays(stem)
        meta = self.data.meta
        self.images = arrays(meta["images_file"].removesuffix(".npz"))
        self.cfg, self.dims, self.steps = meta["cfg"], meta["dims"], meta["n_steps"]
        self.epoch = meta["cfg"]["train"]["OFFICIAL_EPOCH_LENGTH"]
        self.model = self._model()
        self.recipe = self._recipe(self.params("init"))

    def _model(self):
        student, crops = self.cfg["student"], self.cfg["crops"]
        gather = None
        if self.mesh is not None:
            gather = sharding.gather(self.mesh, jnp.float32, jnp.float32)
        backbone = vit.ViT(
            width=self.dims["embed"],
            depth=self.dims["depth"],
            heads=self.dims["heads"],
            patch_size=student["patch_size"],
            image_size=crops["global_crops_size"],
            registers=student["num_register_tokens"],
            ffn="mlp" if student["ffn_layer"] == "mlp" else "swiglu",
            layerscale=student["layerscale"] or None,
            qkv_bias=student["qkv_bias"],
            proj_bias=student["proj_bias"],
            ffn_bias=student["ffn_bias"],
            antialias=student["interpolate_antialias"],
            offset=student["interpolate_offset"],
            gather=gather,
            **self.changes,
        )

        def head(cfg):
            return heads.Head(
                prototypes=cfg["head_n_prototypes"],
                hidden=cfg["head_hidden_dim"],
                bottleneck=cfg["head_bottleneck_dim"],
                layers=cfg["head_nlayers"],
                gather=gather,
            )

        separate = head(self.cfg["ibot"]) if self.cfg["ibot"]["separate_head"] else None
        return dino.DINO(backbone, head(self.cfg["dino"]), separate)

    def _recipe(self, params):
        optimizer, teacher = self.cfg["optim"], self.cfg["teacher"]
        made = schedules_of(optimizer | teacher, self.epoch)
        factors = optim.multipliers(
            params, optimizer["layerwise_decay"], optimizer["patch_embed_lr_mult"]
        )
        tx = optim.adamw(
            factors,
            (optimizer["adamw_beta1"], optimizer["adamw_beta2"]),
            clip=optimizer["clip_grad"] or 0.0,
        )
        kind = {"sinkhorn_knopp": "sinkhorn"}.get(
            self.cfg["train"]["centering"], "centering"
        )
        return step.Recipe(
            self.model,
            tx,
            made,
            step.TARGETS[kind],
            dino_weight=self.cfg["dino"]["loss_weight"],
            koleo_weight=self.cfg["dino"]["koleo_loss_weight"],
            ibot_weight=self.cfg["ibot"]["loss_weight"],
        )

    def snapshots(self, network):
        """Updates done -> prefix of what is stored of the student or the teacher."""
        start = f"{network}_after_step"
        prefixes = {key.partition("/")[0] for key in self.data}
        ends = {p: p.removeprefix(start) for p in prefixes if p.startswith(start)}
        found = {int(end): prefix for prefix, end in ends.items() if end.isdecimal()}
        return found | {self.steps: f"{network}_final"}

    def stored(self, prefix):
        """A snapshot by the reference's names, its blocks not in chunks."""
        start = "backbone."
        flat = self.data.under(prefix)
        backbone = {
            name.removeprefix(start): value
            for name, value in flat.items()
            if name.startswith(start)
        }
        heads = {n: value for n, value in flat.items() if not n.startswith(start)}
        unchunked = names.unchunked(backbone)
        return {start + name: value for name, value in unchunked.items()} | heads

    def params(self, prefix):
        """A snapshot as our tree."""
        stored = self.stored(prefix)
        parts = {name.partition(".")[0] for name in stored}
        found = {}
        for part in sorted(parts):
            weights = {
                name.removeprefix(part + "."): value
                for name, value in stored.items()
                if name.startswith(part + ".")
            }
            if part == "backbone":
                x = jnp.zeros((1, self.dims["gl"], self.dims["gl"], 3))
                shapes = jax.eval_shape(self.model.backbone.init, jax.random.key(0), x)
                found[part] = names.backbone_from_official(weights, shapes["params"])
            else:
                found[part] = names.head_from_official(weights)
        return jax.tree.map(jnp.asarray, found)

    def official(self, params):
        """Our tree as the reference's names."""
        found = {}
        for part, tree_ in params.items():
            if part == "backbone":
                flat = names.backbone_to_official(
                    tree_, self.cfg["student"]["patch_size"]
                )
            else:
                flat = names.head_to_official(tree_)
            found |= {f"{part}.{name}": value for name, value in flat.items()}
        return found

    def batch(self, number):
        """Batch of step `number` (from 1): image-major, masks on a padded buffer."""
        index = self.data.meta["image_batch_of_step"][str(number)]
        crops = [
            self.images[f"batch{index}/collated_{kind}_crops"].astype(np.float32)
            for kind in ("global", "local")
        ]
        images = self.dims["B"]
        stacks = [
            c.reshape(-1, images, *c.shape[1:]).transpose(1, 0, 3, 4, 2) for c in crops
        ]
        masks = self.data[f"step{number}/collated_masks"]
        masks = masks.reshape(-1, images, masks.shape[-1]).swapaxes(0, 1)
        flat = masks.reshape(1, -1, masks.shape[-1])
        capacity = int(self.data[f"step{number}/upperbound"])
        packed = contract.pack_masks(flat, masks.shape[1], capacity)
        return self.placed(contract.Batch(*stacks, *packed))

    def placed(self, batch):
        """The batch on the devices: over all, or as many as its rows divide among."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, batch)

        def put(x):
            sizes = {sharding.BATCH: self.mesh.size, P("fsdp"): self.mesh.shape["fsdp"]}
            fitting = [spec for spec, n in sizes.items() if x.shape[0] % n == 0]
            return jax.device_put(x, NamedSharding(self.mesh, [*fitting, P()][0]))

        return jax.tree.map(put, batch)

    def state(self, prefix, teacher=None):
        """A training state that starts from a snapshot."""
        params = self.params(prefix)
        second = params if teacher is None else self.params(teacher)
        number = self.model.dino_head.prototypes
        patch = (self.model.ibot_head or self.model.dino_head).prototypes
        made = state.create(params, second, self.recipe.tx, (number, patch))
        if self.mesh is None:
            return made
        return jax.device_put(made, sharding.layouts(made, self.mesh))
