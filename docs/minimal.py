"""A language model from top to bottom on one page, with PyTorch alone. Read it first, then the rest of this project.

It is a decoder-only Transformer (Vaswani et al. 2017) as Qwen3 has it, the project's default; both compute the same
numbers (tests/model/test_minimal.py). A text is a row of tokens, whole numbers that stand for its characters or pieces.
The model gives every token a score: how well it would come next. It learns that from a text in half a minute:

    python docs/minimal.py              # learns this very file, character by character, and writes more of the kind
    python docs/minimal.py BOOK.txt     # learns a text file of yours

The comments at the line ends are shapes. B texts in a batch, T tokens in a text, C numbers per token (the width), H
attention heads, K heads of keys and values, D width of a head, I width inside the MLP, V tokens in the vocabulary.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass
class Config:
    """The sizes of a model. These defaults give a small one, for a CPU."""

    vocab_size: int  # V
    hidden_size: int = 128  # C
    intermediate_size: int = 384  # I
    num_hidden_layers: int = 4
    num_attention_heads: int = 4  # H
    num_key_value_heads: int = 2  # K
    head_dim: int = 32  # D, often C / H
    max_position_embeddings: int = 64  # the most tokens it looks at: the largest T
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6


class RMSNorm(nn.Module):
    """Brings every vector to length sqrt(size), then scales each channel, as learned (Zhang & Sennrich 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean_square = x.pow(2).mean(-1, keepdim=True)  # ... size -> ... 1
        return x * torch.rsqrt(mean_square + self.eps) * self.weight  # ... size


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary position embedding (Su et al. 2021): turns queries or keys by angles that grow with their position.

    Channels i and i + D/2 are a point in a plane, which turns by theta^(-2i/D) per position: the first pair fast, the
    last very slowly. The dot product of a query and a key then depends on how far apart they are, not on where.
    """
    length, size = x.shape[-2:]  # T, D
    speeds = theta ** (-torch.arange(0, size, 2, device=x.device) / size)  # D/2
    angles = torch.outer(torch.arange(length, device=x.device), speeds)  # T D/2
    cos, sin = angles.cos(), angles.sin()  # T D/2
    a, b = x.chunk(2, dim=-1)  # B H T D -> two of B H T D/2
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # B H T D


class Attention(nn.Module):
    """Every token asks with a query, finds by their keys the tokens that matter to it, and takes in their values.

    softmax(Q K^T / sqrt(D)) V, in H heads at once (Vaswani et al. 2017). Queries and keys are normed, which bounds
    their scores (QK-norm, after Henry et al. 2020). H / K query heads share keys and values (Ainslie et al. 2023).
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, kv_width = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        heads = (-1, self.config.head_dim)
        query = self.q_norm(self.q_proj(x).unflatten(-1, heads))  # B T C -> B T H*D -> B T H D
        key = self.k_norm(self.k_proj(x).unflatten(-1, heads))  # B T C -> B T K*D -> B T K D
        value = self.v_proj(x).unflatten(-1, heads)  # B T C -> B T K*D -> B T K D
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))  # B H T D, B K T D, B K T D
        query, key = (rotate(t, self.config.rope_theta) for t in (query, key))
        # is_causal: a token sees itself and those before it, never the future. enable_gqa: K may be smaller than H.
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)  # B H T D
        return self.o_proj(y.transpose(1, 2).flatten(2))  # B H T D -> B T H D -> B T H*D -> B T C


class MLP(nn.Module):
    """Each token thinks for itself: SwiGLU, an MLP of which one half opens and closes the other (Shazeer 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # B T C -> B T I -> B T C


class DecoderLayer(nn.Module):
    """Tokens look at each other, then think. Both add to x, normed on the way in (pre-norm, Xiong et al. 2020)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))  # B T C
        x = x + self.mlp(self.mlp_norm(x))  # B T C
        return x


class LanguageModel(nn.Module):
    """Tokens in, scores of the next token out: embedding, layers, norm, head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        for name, weight in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)  # every layer begins as x + 0 (Zhang et al. 2019)
            elif weight.dim() == 2:
                nn.init.normal_(weight, std=0.02 if name == "embed.weight" else weight.size(1) ** -0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits (B, T, V) of the token after each of the tokens (B, T)."""
        x = self.embed(tokens)  # B T -> B T C
        for layer in self.layers:
            x = layer(x)  # B T C
        return self.norm(x) @ self.embed.weight.T  # B T C @ C V -> B T V; "tied": the head's matrix is the embedding's

    def loss(self, tokens: Tensor) -> Tensor:
        """How badly each of the tokens (B, T+1) is guessed from those before it: cross-entropy, near ln V at first."""
        logits, targets = self(tokens[:, :-1]), tokens[:, 1:]  # B T V, B T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())  # B*T V, B*T -> one number

    @torch.no_grad()
    def generate(self, tokens: Tensor, count: int, temperature: float = 1.0) -> Tensor:
        """The tokens (B, T) and `count` more, drawn one by one; at temperature 0 always the likeliest."""
        for _ in range(count):
            logits = self(tokens[:, -self.config.max_position_embeddings :])[:, -1]  # B T V -> B V
            if temperature == 0:
                chosen = logits.argmax(-1, keepdim=True)  # B V -> B 1
            else:
                chosen = torch.multinomial(F.softmax(logits / temperature, dim=-1), 1)  # B V -> B 1
            tokens = torch.cat((tokens, chosen), dim=1)  # B T -> B T+1
        return tokens


def train(model: LanguageModel, tokens: Tensor, steps: int, rows: int = 16, learning_rate: float = 3e-3) -> list[float]:
    """Fit the model to random stretches of a long text, its tokens in one dimension. Returns the loss of every step."""
    stretches = tokens.unfold(0, model.config.max_position_embeddings + 1, 1)  # N T+1, one from every place on
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    # The steps grow for a while (the first gradients are a poor guide), then shrink to nothing.
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: min((i + 1) / 30, 1.0) * (1 - i / steps))
    losses = []
    for step in range(steps):
        loss = model.loss(stretches[torch.randint(len(stretches), (rows,))])  # B T+1 -> one number
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # one strange batch must not do much harm
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step:4d}  loss {losses[-1]:.3f}", flush=True)
    return losses


if __name__ == "__main__":
    torch.manual_seed(0)
    text = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).read_text(encoding="utf-8")
    if len(text) < 1000:
        sys.exit(f"{len(text)} characters are too few to learn from; 1000 or more are needed")
    characters = sorted(set(text))  # the vocabulary: a token is a place in this list
    seen, unseen = torch.tensor([characters.index(c) for c in text]).tensor_split([len(text) * 9 // 10])
    model = LanguageModel(Config(vocab_size=len(characters)))
    print(f"{len(text)} characters of {len(characters)} kinds; {sum(p.numel() for p in model.parameters())} weights")
    train(model, seen, steps=300)
    # A text of a few pages is learned by heart: the loss on its last tenth, left out of the training, tells.
    print(f"unseen     loss {model.loss(unseen.unfold(0, 65, 64)[:16]):.3f}\n")
    sample = model.generate(seen[None, :20], count=500, temperature=0.8)[0]  # 1 20 -> 1 520 -> 520
    print("".join(characters[token] for token in sample))
