"""Qwen2.5-VL whose decoder layers attend to video sparsely: the same weights' names, plus gates and compressors."""

import functools
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import WeightRenaming
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as qwen

from nsa_lab.attention.trace import Trace
from nsa_lab.config import ExperimentConfig
from nsa_lab.data.chat import IGNORED
from nsa_lab.errors import NsaLabError
from nsa_lab.layout import OnHost, TokenLayout, layout_from_mrope, layout_from_token_ids, moved
from nsa_lab.model.attention import VideoNSAAttention
from nsa_lab.model.cache import VideoCache
from nsa_lab.model.chunks import check_size
from nsa_lab.model.config import VideoNSAConfig
from nsa_lab.model.context_parallel import Shared
from nsa_lab.model.decoder import VideoNSATextModel
from nsa_lab.model.generation import Generation
from nsa_lab.model.partitions import LayerPartitions
from nsa_lab.model.plan import AttentionPlan
from nsa_lab.model.positions import rope_index, token_types
from nsa_lab.model.token_loss import token_loss
from nsa_lab.model.vision import TowerWatch, in_chunks, speed_up, vision_inputs


class VideoNSAModel(qwen.Qwen2_5_VLModel):
    def __init__(self, config: VideoNSAConfig):
        qwen.Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.visual = qwen.Qwen2_5_VisionTransformerPretrainedModel._from_config(config.vision_config)
        speed_up(self.visual)
        self.language_model = VideoNSATextModel._from_config(config.text_config)
        self.rope_deltas: Tensor | None = None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        video_grid_thw: Tensor | None = None,
        trace: Trace | None = None,
        host: OnHost | None = None,
        answering: Tensor | None = None,
        prefill_chunk: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Qwen2.5-VL's, and: a packed batch (row 0 of position_ids restarts) never makes a cache.

        answering [B, up to L] bool: the tokens that an answer is to follow (see AttentionPlan). `host` is what the
        batch says of itself, so that the forward need not wait for the device to tell. prefill_chunk: the tower and the
        decoder take about so many tokens at a time, with the same result in less memory (nsa_lab/model/chunks.py).
        Raises ValueError where video tokens come after the cache has been filled, or do not match their grids, and
        NsaLabError where a prefill cannot be cut into chunks.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        plan = None
        if prefill_chunk is not None:
            check_size(prefill_chunk)
            if past or host is not None:
                after = "a training's batch" if host is not None else f"what comes after {past} cached tokens"
                raise NsaLabError(f"prefill_chunk cuts a whole prompt, not {after}; leave it out")
        if position_ids is None:
            given = {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": past_key_values}
            kwargs["mm_token_type_ids"] = self.ready_positions(kwargs.get("mm_token_type_ids"), **given)
        if past == 0:
            source = input_ids if input_ids is not None else inputs_embeds
            assert source is not None
            shared = None
            if host is not None and input_ids is not None:
                layout = moved(host.layout, source.device)
                shared = host.shared and host.shared.to(source.device)
                watch = self._watch(host.layout)
                pixels = kwargs.pop("pixel_values_videos")
                inputs_embeds = self._embed(input_ids, pixels, host.layout, layout, shared, watch)
                input_ids = None
            else:
                layout = self._layout(input_ids, inputs_embeds, attention_mask, position_ids, video_grid_thw)
                watch = self._watch(layout)
                kwargs |= {} if watch is None else {"watch": watch}
            shape = (source.shape[0], source.shape[1])
            plan = AttentionPlan(layout, shape, trace or Trace(), shared=shared, answering=answering)
            plan.tower = {} if watch is None else watch.seen
            if shared or len(layout.cu_seqlens) - 1 > source.shape[0]:
                use_cache, past_key_values = False, None
        elif input_ids is not None and bool((input_ids == self.config.video_token_id).any()):
            raise ValueError(
                f"video tokens arrive after {past} cached tokens; give the whole video to the first forward (prefill),"
                " with prefill_chunk where it is long"
            )
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            video_grid_thw=video_grid_thw,
            plan=plan,
            past_length=past,
            prefill_chunk=prefill_chunk,
            **kwargs,
        )

    @property
    def watched_blocks(self) -> Collection[int]:
        """The blocks of the tower that the reducer looks at."""
        return self.language_model.reducer.looks_at(sorted(self.visual.fullatt_block_indexes))

    def _watch(self, layout: TokenLayout) -> TowerWatch | None:
        """Who looks at the tower for the reducer, if it wants to and there is a video."""
        blocks = self.watched_blocks if len(layout.grids) else ()
        return TowerWatch(self.visual, layout.grids, blocks) if blocks else None

    def get_image_features(
        self, *args: Any, watch: TowerWatch | None = None, prefill_chunk: int | None = None, **kwargs: Any
    ) -> Any:
        """As Qwen2.5-VL's; only videos are looked at, and cut into chunks."""
        return super().get_image_features(*args, **kwargs)

    def get_video_features(
        self,
        pixel_values_videos: Tensor,
        video_grid_thw: Tensor | None = None,
        prefill_chunk: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As Qwen2.5-VL's; with prefill_chunk the tower takes whole frames of about so many tokens at a time."""
        run = super().get_video_features
        if prefill_chunk is None or video_grid_thw is None:
            return run(pixel_values_videos, video_grid_thw, **kwargs)
        return in_chunks(run, pixel_values_videos, video_grid_thw, prefill_chunk, self.visual, **kwargs)

    def _embed(
        self,
        input_ids: Tensor,
        pixels: Tensor,
        host: TokenLayout,
        layout: TokenLayout,
        shared: Shared | None,
        watch: TowerWatch | None,
    ) -> Tensor:
        """[1, L, hidden] of a packed batch, or of the own rows of a shared one: the embeddings of its tokens, and its
        videos in their places."""
        embeds = self.get_input_embeddings()(input_ids)
        grids = shared.grids if shared else host.grids
        given = vision_inputs(self.visual, grids, pixels.device) | ({} if watch is None else {"watch": watch})
        tower = self.visual(pixels.to(self.visual.dtype), **given)
        video, places = tower.pooler_output, layout.rows[layout.video_index]
        if shared:
            own = torch.searchsorted(layout.video_index, layout.tokens_of(layout.video_rows))
            video, places = shared.all_video(video)[own], layout.video_rows
        return embeds.index_copy(1, places, video.to(embeds.dtype)[None])

    def ready_positions(
        self, types: Tensor | None, *, input_ids: Tensor | None, attention_mask: Tensor | None, past_key_values: Any
    ) -> Tensor | None:
        """Before transformers computes positions: `rope_deltas` of this cache, not of what the model read last.

        Returns mm_token_type_ids [B, L]: `types`, or read off the ids, for without them a video is counted as text.
        """
        past = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        if past == 0:
            self.rope_deltas = None
        elif isinstance(past_key_values, VideoCache):
            self.rope_deltas = past_key_values.rope_deltas(attention_mask)
        return token_types(self.config, input_ids) if types is None and input_ids is not None else types

    def get_rope_index(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """M-RoPE ids [3, B, L] and deltas [B, 1] (nsa_lab/model/positions.py); types are read off the token ids."""
        return rope_index(self.config, input_ids, image_grid_thw, video_grid_thw, second_per_grid_ts, attention_mask)

    def _layout(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        grid_thw: Tensor | None,
    ) -> TokenLayout:
        packed = position_ids is not None and position_ids.ndim == 3 and position_ids.shape[0] == 4
        given: dict[str, Any] = {
            "attention_mask": attention_mask,
            "text_positions": position_ids[0] if packed and position_ids is not None else None,
            "spatial_merge": self.config.vision_config.spatial_merge_size,
        }
        if input_ids is not None:
            mrope_ids = position_ids[-3:] if position_ids is not None and position_ids.ndim == 3 else None
            return layout_from_token_ids(input_ids, self.config.video_token_id, grid_thw, mrope_ids=mrope_ids, **given)
        if position_ids is None or position_ids.ndim == 2:
            assert inputs_embeds is not None
            length = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)
            position_ids = length.expand(3, inputs_embeds.shape[0], -1)
        return layout_from_mrope(position_ids[-3:], grid_thw, **given)


class VideoNSAForConditionalGeneration(Generation):
    """The whole model; a proxy, the 3B and the 7B differ by config only. Load it with nsa_lab.load_model.

    experiment: the settings that it came with, of data and tokenizer among them; None where nobody said.
    """

    config_class = VideoNSAConfig

    def __init__(self, config: VideoNSAConfig):
        qwen.Qwen2_5_VLPreTrainedModel.__init__(self, config)
        self.experiment: ExperimentConfig | None = None
        self.model = VideoNSAModel(config)
        self.lm_head = torch.nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    # generate() reads off the signature which inputs are the model's.
    @functools.wraps(Qwen2_5_VLForConditionalGeneration.forward)
    def forward(self, *args: Any, trace: Trace | None = None, targets: Tensor | None = None, **kwargs: Any) -> Any:
        """As Qwen2.5-VL's. `trace` collects what the forward says of itself; its losses are part of a loss (labels).

        With targets [n] int64 of the rows logits_to_keep [n] of a packed batch, their TokenLoss in place of logits.
        """
        trace = Trace() if trace is None else trace
        if self.by_question and kwargs.get("labels") is not None:
            kwargs["answering"] = kwargs["labels"][:, 1:] != IGNORED
        if targets is not None:
            rows = kwargs.pop("logits_to_keep")
            if self.by_question:
                ids = args[0] if args else kwargs["input_ids"]
                kwargs["answering"] = torch.zeros_like(ids, dtype=torch.bool).index_fill(1, rows, True)
            hidden = self.model(*args, trace=trace, **kwargs).last_hidden_state
            return token_loss(hidden[0, rows], self.lm_head.weight, targets)
        output = super().forward(*args, trace=trace, **kwargs)
        extra = trace.loss()
        if output.loss is not None and extra is not None:
            output.loss = output.loss + extra
        return output

    @property
    def partitions(self) -> LayerPartitions:
        """The partitioners of the layers."""
        return self.model.language_model.partitions

    def attentions(self) -> list[VideoNSAAttention]:
        """The attention of each decoder layer."""
        return [layer.self_attn for layer in self.model.language_model.layers]


# transformers looks checkpoint-key conversions up by class name; without this line a hub checkpoint's text weights
# would not be found and would stay random. Gates are called on disk as in the published VideoNSA checkpoint.
register_checkpoint_conversion_mapping(
    VideoNSAForConditionalGeneration.__name__,
    [
        *(get_checkpoint_conversion_mapping(Qwen2_5_VLForConditionalGeneration.__name__) or []),
        WeightRenaming(r"self_attn\.g_proj_1\.", "self_attn.method.sparse.gate.up."),
        WeightRenaming(r"self_attn\.g_proj_2\.", "self_attn.method.sparse.gate.down."),
    ],
    overwrite=True,
)
