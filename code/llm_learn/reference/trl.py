"""Computes losses from our log-probabilities with the trainers of TRL."""

import os
from collections import defaultdict
from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional as F

# TRL warns that its experimental parts may change; the version that we install is pinned.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


def _pretend_trainer(**what: object) -> SimpleNamespace:
    """Stands in for a trainer of TRL on one process, so that a method of it computes its loss without one."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        process_index=0,
    )
    return SimpleNamespace(
        accelerator=accelerator,
        aux_loss_enabled=False,
        model=SimpleNamespace(training=True, is_gradient_checkpointing=False),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **what,
    )


def trl_ppo_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, clip: float
) -> Tensor:
    """PPO's clipped loss, mean over tokens: `trl_grpo_loss` with the same range on both sides. Needs `trl`."""
    return trl_grpo_loss(
        logps, old_logps, advantages, mask, low=clip, high=clip, kind="bnpo"
    )


def trl_grpo_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    low: float,
    high: float,
    kind: str,
    level: str = "token",
    ref_logps: Tensor | None = None,
    beta: float = 0.0,
    weigh_kl: bool = False,
) -> Tensor:
    """The loss of a batch of answers, by the lines of TRL's trainer for GRPO. Needs `trl`.

    Args:
        logps, old_logps, advantages: (B, T), as for `ppo_clip_loss`.
        mask: (B, T), True for the tokens that count; T is the maximum length of an answer.
        low, high: how far a ratio can move from 1 on each side.
        kind: TRL's `loss_type`: `grpo` is the mean of the answers' means, `bnpo` the mean over all tokens, `dr_grpo`
            the sum over all tokens, divided by B times T.
        level: TRL's `importance_sampling_level`: a ratio of each `token`, or of each `sequence`, as in GSPO.
        ref_logps: (B, T), log-probabilities under the reference model.
        beta: the weight of the term k3; 0 for none.
        weigh_kl: TRL's `use_bias_correction_kl`, which multiplies k3 by the ratio.
    """
    from trl import GRPOTrainer

    nothing = torch.zeros_like(logps)
    trainer = _pretend_trainer(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, nothing, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level=level,
        beta=beta,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=weigh_kl),
        loss_type=kind,
        epsilon_low=low,
        epsilon_high=high,
        max_completion_length=logps.shape[1],
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
    )
    no_prompt = torch.zeros(len(logps), 1, dtype=torch.long)
    inputs = {
        "prompt_ids": no_prompt,
        "prompt_mask": no_prompt,
        "completion_ids": torch.zeros_like(logps, dtype=torch.long),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "old_per_token_logps": old_logps,
        "ref_per_token_logps": ref_logps,
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)


def trl_group_advantages(rewards: Tensor, *, scale: str = "group") -> Tensor:
    """Advantages of answers, by the lines of TRL's trainer for GRPO that score them, in float32. Needs `trl`.

    Args:
        rewards: (prompts, samples)
        scale: TRL's `scale_rewards`: by the standard deviation of each `group`, of the whole `batch`, or `none`.

    Returns:
        (prompts, samples)
    """
    from trl import GRPOTrainer

    number, samples = rewards.numel(), rewards.shape[1]
    ids = [[0]] * number
    trainer = _pretend_trainer(
        _generate=lambda _: (ids, ids, None, ids, None, {}, None, None),
        _calculate_rewards=lambda *_: rewards.reshape(-1, 1),
        _tokenizer=SimpleNamespace(pad_token_id=0),
        _logs=defaultdict(list, rewards=defaultdict(list)),
        _pending_extra_logs={},
        _pending_metrics={},
        environment_factories=None,
        environments=None,
        tools=None,
        pad_to_multiple_of=None,
        mask_truncated_completions=False,
        args=SimpleNamespace(
            per_device_train_batch_size=number,
            gradient_checkpointing_kwargs=None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
        ),
        num_iterations=1,
        num_generations=samples,
        use_vllm=False,
        beta=0.0,
        reward_funcs=[None],
        reward_func_names=["reward"],
        reward_weights=torch.ones(1),
        multi_objective_aggregation="sum_then_normalize",
        scale_rewards=scale,
        log_multimodal=False,
    )
    prompts = [{"prompt": ""}] * number
    scored = GRPOTrainer._generate_and_score_completions(trainer, prompts)
    return scored["advantages"].view_as(rewards)


def trl_pair_loss(
    logps: Tensor, ref_logps: Tensor, mask: Tensor, *, beta: float, kind: str
) -> Tensor:
    """The loss of pairs, mean over them, by the lines of TRL's trainer for DPO. Needs `trl`.

    Args:
        logps: (2, B, T) log-probabilities of the tokens of the chosen answers, and of the rejected, under the policy.
        ref_logps: (2, B, T) the same under the reference model.
        mask: (2, B, T), True for the tokens of the answers.
        beta: TRL's option of this name.
        kind: TRL's `loss_type`: `sigmoid` is DPO, `sigmoid_norm` DPO of token means, `ipo` IPO of token means.
    """
    from trl import DPOTrainer

    rows = logps.where(mask, 0).flatten(0, 1)  # (2B, T)
    ref_chosen, ref_rejected = ref_logps.where(mask, 0).sum(2)
    nothing = torch.zeros_like(rows)
    outputs = SimpleNamespace(
        log_probs=rows, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    trainer = _pretend_trainer(
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
    )
    # One token is before the answers, as TRL's log-probabilities begin with the second.
    counts = F.pad(mask.flatten(0, 1), (1, 0)).long()  # (2B, 1 + T)
    inputs = {
        "input_ids": torch.zeros_like(counts),
        "attention_mask": torch.ones_like(counts),
        "completion_mask": counts,
        "ref_chosen_logps": ref_chosen,
        "ref_rejected_logps": ref_rejected,
    }
    return DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def trl_simpo_loss(
    chosen: Tensor, rejected: Tensor, *, beta: float, gamma: float
) -> Tensor:
    """SimPO's loss of each pair, (B,), by the lines of TRL's trainer for CPO. Needs `trl`.

    Args:
        chosen, rejected: (B,) mean log-probability per token of each answer.
        beta, gamma: as in the paper (arXiv:2405.14734, eq. 6).
    """
    from trl.experimental.cpo import CPOTrainer

    trainer = _pretend_trainer(
        alpha=0.0, loss_type="simpo", beta=beta, simpo_gamma=gamma, label_smoothing=0.0
    )
    return CPOTrainer.cpo_loss(trainer, chosen, rejected)[0]


def trl_odds_ratio_loss(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """What TRL's trainer for ORPO *subtracts* from the loss on the chosen answers, (B,), in float32. Needs `trl`.

    Args:
        chosen, rejected: (B,) mean log-probability per token of each answer.
        beta: the weight, lambda in the paper (arXiv:2403.07691, eq. 6).
    """
    from trl.experimental.orpo import ORPOTrainer

    trainer = _pretend_trainer(beta=beta)
    return ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]


def trl_kto_loss(log_ratios: Tensor, good: Tensor, kl: Tensor, *, beta: float) -> Tensor:
    """KTO's loss, mean over answers, by the lines of TRL's trainer for it. Needs `trl`.

    Args:
        log_ratios: (B,) log-probabilities of answers under the policy, minus those under the reference model.
        good: (B,), True for the desirable answers.
        kl: (B,) estimates of the KL divergence, whose mean counts if it is above 0.
        beta: as in the paper (arXiv:2402.01306, eq. 7).
    """
    from trl.experimental.kto import KTOTrainer

    nothing = torch.zeros(len(log_ratios), 1)
    outputs = SimpleNamespace(
        log_probs=log_ratios.unsqueeze(1), entropy=nothing, mean_logits=nothing
    )
    trainer = _pretend_trainer(
        _compute_kl_logps=lambda *_: kl,
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        beta=beta,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    # A prompt of one token, and an answer of one.
    counts = torch.tensor([[0, 1]]).expand(len(log_ratios), 2)
    inputs = {
        "label": good,
        "input_ids": torch.zeros_like(counts),
        "attention_mask": torch.ones_like(counts),
        "completion_mask": counts,
        "ref_logps": torch.zeros_like(log_ratios),
        "ref_KL_logps": torch.zeros_like(kl),
    }
    return KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)


def trl_jsd(
    student_logits: Tensor, teacher_logits: Tensor, *, beta: float, temperature: float
) -> Tensor:
    """The divergence by which TRL's trainer for on-policy distillation compares logits. Needs `trl`.

    Args:
        student_logits, teacher_logits: (..., V)
        beta: from KL(teacher || student) at 0 to KL(student || teacher) at 1.
        temperature: what both are divided by.

    Returns:
        (...)
    """
    from trl.experimental.gkd import GKDTrainer

    each = GKDTrainer.generalized_jsd_loss(
        student_logits, teacher_logits, beta=beta, temperature=temperature, reduction="none"
    )
    return each.sum(-1)
