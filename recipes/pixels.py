r"""Compares five ways to see, for an agent that plays a game from its pictures.

You will learn how the networks of deep learning become the eyes of an agent, and
whether it helps to train them beforehand. The same deep Q-network (`kit/dqn.py`) learns
the same game with

- `end_to_end`: convolutions that learn from the game's rewards alone;
- `frozen`: the code of an autoencoder (`kit/autoencoder.py`) that was trained on
  pictures of random play, and stays as it is;
- `fine_tuned`: the same code, which rewards then change;
- `imitation`: the convolutions of a classifier that was trained to predict the actions
  of the trained `end_to_end` agent (behaviour cloning), which rewards then change;
- `linear`: no hidden layer; the baseline.

    KERAS_BACKEND=jax python recipes/pixels.py
    KERAS_BACKEND=jax python recipes/pixels.py --env SpaceInvaders-v1 --seeds 3 \
        --total-timesteps 1000000
    KERAS_BACKEND=torch python recipes/pixels.py --ways end_to_end linear

The game is one of MinAtar's: 10 by 10 cells, with a plane for each kind of object,
compiled together with the agent. curves.png compares the ways. seeing.png shows what
they look at: the autoencoder's reconstructions of some pictures, and the saliency of
each cell, the size of the gradient of max_a Q(s, a) with respect to it.

Expected result on Breakout (JAX, mean of seeds 0 to 2, 100 greedy episodes each): a
return of 4.4 end to end, 3.9 with the fine-tuned code, 4.1 with the classifier's
convolutions (4.3 by imitation alone), 2.8 with the frozen code and 2.4 with the linear
network; a random policy has 0.4. Seeds differ more than the first three ways (end to
end 3.9, 5.7 and 3.6), so pretraining doesn't help here, as far as three seeds tell.
`--seeds 3`, which trains them as one program, took 3.5 minutes on one core. The
defaults are for a short run, not for the best scores: MinAtar's authors give an agent
1,000,000 frames or more, and a gradient step after each.

Each agent makes the same number of steps. What precedes is extra, and metrics.json
counts it: the pictures of random play, and for `imitation` the whole training of
another agent, and the pictures of its play.

Papers: Mnih et al., 2015, https://doi.org/10.1038/nature14236 (deep Q-networks); Young
and Tian, 2019, https://arxiv.org/abs/1903.03176 (MinAtar and its network); Lange and
Riedmiller, 2010, https://doi.org/10.1109/IJCNN.2010.5596468 (autoencoders as eyes);
Simonyan et al., 2014, https://arxiv.org/abs/1312.6034 (saliency).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import keras
import numpy as np
from keras import ops
from matplotlib.patches import Patch

import kit
from kit import checks
from kit.envs import make
from kit.envs.minatar.board import COLORS, BoardGame, paint
from kit.lab.run import Run, command_line, plot_comparison
from kit.rl.environments import Environments, play_episodes, random_policy

Way = Literal["end_to_end", "frozen", "fine_tuned", "imitation", "linear"]
WAYS: tuple[Way, ...] = get_args(Way)
LABELS: dict[str, str] = {
    "end_to_end": "convolutions,\nend to end",
    "frozen": "autoencoder's\ncode, frozen",
    "fine_tuned": "autoencoder's\ncode, fine-tuned",
    "imitation": "a classifier's\nconvolutions",
    "linear": "linear",
}
BY_CODE = ("frozen", "fine_tuned")
# A greedy agent may play for ever: Breakout's ball can move in a circle.
MOST_EVAL_STEPS = 5_000
PICTURES = 6  # in seeing.png

ACCEPTED = {
    "ways": checks.sequence(checks.one_of(*WAYS), least=1),
    **dict.fromkeys(("num_envs", "latent_dim", "eval_episodes", "seeds"), checks.SIZE),
    # A tenth of the pictures is held out.
    "pretraining_frames": checks.integer("[10, 2**31)"),
    "pretraining_epochs": checks.SIZE,
    "batch_size": checks.SIZE,
}

# Read by `python -m kit compare`: how runs are judged, and what --quick passes.
COMPARISON = {
    "title": "Ways to see, for a deep Q-network",
    "place": 19,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "curve_rows": {"way": "end_to_end"},
    "quick": "--total-timesteps 20000 --ways end_to_end linear",
    "published": [
        ("9", "MinAtar's authors, DQN, 1,000,000 frames", {"env": "Breakout"}),
        ("33", "MinAtar's authors, DQN, 1,000,000 frames", {"env": "SpaceInvaders"}),
    ],
}


def main(
    *,
    env: str = "Breakout-v1",
    ways: tuple[Way, ...] = WAYS,
    total_timesteps: int = 100_000,
    num_envs: int = 16,
    learning_rate: float = 5e-4,
    gamma: float = 0.99,
    buffer_size: int = 100_000,
    batch_size: int = 64,
    learning_starts: int = 0,
    gradient_steps: int = 1,
    target_update_freq: int = 1_000,
    epsilon_end: float = 0.05,
    exploration_fraction: float = 0.2,
    latent_dim: int = 64,
    pretraining_frames: int = 20_000,
    pretraining_epochs: int = 10,
    eval_episodes: int = 100,
    seed: int = 0,
    seeds: int = 1,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains an agent in each way, and compares how they play.

    Args:
        env: Id of one of MinAtar's games in `kit/envs/registration.py`.
        ways: What to compare; `imitation` needs `end_to_end`.
        total_timesteps: Environment steps to train each agent for.
        num_envs: Games that are played side by side.
        learning_rate: Step size of Adam.
        gamma: Discount factor.
        buffer_size: Transitions to remember.
        batch_size: Transitions in a gradient step, and pictures in one of pretraining.
        learning_starts: Environment steps before the first gradient step; 0 spares the
            compilation of a program that only plays.
        gradient_steps: Gradient steps after each step of all games.
        target_update_freq: Environment steps between target network updates.
        epsilon_end: Probability of a random action after exploration.
        exploration_fraction: Part of the training in which it falls to that.
        latent_dim: Numbers in the autoencoder's code.
        pretraining_frames: Pictures to train the autoencoder on, and the classifier.
        pretraining_epochs: Passes over them.
        eval_episodes: Episodes that each trained agent plays greedily.
        seed: Seed of everything that is drawn.
        seeds: Number of agents for each way, with this seed and the next ones.
        output_dir: Folder for the results; runs/pixels-<backend>-<seed> if not given.
        resume: Go on with an interrupted run, from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        What metrics.json holds.
    """
    run = Run(
        "pixels", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    check(run.config)
    ways = tuple(way for way in WAYS if way in ways)  # imitation after its teacher
    envs, test_envs = make_game(env, num_envs), make_game(env, eval_episodes)
    test_envs.max_episode_steps = MOST_EVAL_STEPS
    test: dict[str, Any] = {"episodes": eval_episodes, "seed": 10_000 + seed}
    pretraining: dict[str, Any] = {
        "num_frames": pretraining_frames,
        "epochs": pretraining_epochs,
        "batch_size": batch_size,
        "verbose": verbose,
    }
    learning: dict[str, Any] = {
        "gamma": gamma,
        "buffer_size": buffer_size,
        "batch_size": batch_size,
        "learning_starts": learning_starts,
        "gradient_steps": gradient_steps,
        "target_update_freq": target_update_freq,
        "epsilon_end": epsilon_end,
        "exploration_fraction": exploration_fraction,
    }
    results: list[Result] = []
    models: list[dict[str, Any]] = []  # of each seed, by name
    for agent_seed in range(seed, seed + seeds):
        learned: dict[str, Any] = {}
        network_seed, eyes_seed = kit.random.split_seed(agent_seed)
        for way in ways:
            # 1. Eyes that are trained beforehand: on random play, or by imitation.
            if way in BY_CODE and "autoencoder" not in learned:
                name = f"autoencoder-{agent_seed}"
                learned["autoencoder"] = learn_to_reconstruct(
                    run, name, test_envs, latent_dim, seed=eyes_seed, **pretraining
                )
            if way == "imitation":
                name, teacher = f"clone-{agent_seed}", learned["end_to_end"]
                learned["clone"] = learn_to_imitate(
                    run, name, test_envs, teacher, seed=eyes_seed, **pretraining
                )
                played = play_episodes(test_envs, best_of(learned["clone"]), **test)
                results.append(Result("clone", agent_seed, played["return"], {}))
            # 2. Rewards train the whole network, or what is behind a frozen code.
            network = q_network(way, envs, learned, network_seed)
            agent = kit.DQN(
                network, train_freq=1, double=True, seed=agent_seed, **learning
            )
            agent.compile(keras.optimizers.Adam(learning_rate))
            backup = run.backup(f"{way}-{agent_seed}")
            history = agent.fit(
                envs, total_timesteps, callbacks=[backup], verbose=verbose
            )
            # 3. The agent plays greedily, other episodes than those it was trained in.
            agent.save(run.output_dir / f"{way}-{agent_seed}.keras")
            played = agent.evaluate(test_envs, **test)
            results.append(Result(way, agent_seed, played["return"], history.history))
            learned[way] = agent
        models.append(learned)
    return report(run, results, models, test_envs, test)


class Result(NamedTuple):
    """How an agent plays in the end, and what `fit` has reported."""

    way: str
    seed: int
    eval_return: float
    logs: dict[str, list[float]]


def check(config: dict[str, Any]) -> None:
    """Raises an error for arguments that nothing else would refuse in time."""
    checks.check("pixels", config, ACCEPTED)
    if "imitation" in config["ways"] and "end_to_end" not in config["ways"]:
        raise ValueError(
            "pixels: `ways` must have 'end_to_end' where it has 'imitation', whose "
            f"teacher it is; received {config['ways']}."
        )


def make_game(env: str, num_envs: int) -> BoardGame:
    """Makes games: put your own here, if it is a `BoardGame`."""
    game = make(env, num_envs)
    if not isinstance(game, BoardGame):
        games = "Asterix-v1, Breakout-v1, Freeway-v1, Seaquest-v1 or SpaceInvaders-v1"
        raise ValueError(
            f"pixels: `env` must be one of MinAtar's games, {games}, received {env!r}; "
            f"it observes {game.observation_space}."
        )
    return game


# --- What is trained beforehand -------------------------------------------------------


def record(
    envs: BoardGame,
    policy: Callable[[np.ndarray], np.ndarray],
    num_frames: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Plays by a policy.

    Returns:
        What was seen, float32 `(num_frames, H, W, C)`, the earliest first, and the
        actions `(num_frames,)`.
    """
    games = Environments(envs)
    frames, actions = [games.reset(seed)], [policy(games.obs)]
    for _ in range(1, math.ceil(num_frames / games.num_envs)):
        frames.append(games.step(actions[-1]).obs)
        actions.append(policy(games.obs))
    seen = np.concatenate(frames)[:num_frames].astype("float32")
    return seen, np.concatenate(actions)[:num_frames]


def learn_to_reconstruct(
    run: Run,
    name: str,
    envs: BoardGame,
    latent_dim: int,
    *,
    seed: int,
    num_frames: int,
    **options: Any,
) -> kit.Autoencoder:
    """Trains an autoencoder on what random play looks like."""
    frames, _ = record(envs, random_policy(envs, seed), num_frames, seed)
    model = kit.autoencoder(frames.shape[1:], latent_dim, units=(256,))
    kit.initialize_weights(model, seed)
    model.compile(keras.optimizers.Adam(1e-3), "binary_crossentropy")
    model.fit(frames, callbacks=[run.backup(name)], **options)
    model.save(run.output_dir / f"{name}.keras")
    return model


def learn_to_imitate(
    run: Run,
    name: str,
    envs: BoardGame,
    teacher: kit.DQN,
    *,
    seed: int,
    num_frames: int,
    **options: Any,
) -> kit.Sequential:
    """Trains a classifier, the network of `end_to_end`, on what an agent does."""
    frames, actions = record(envs, teacher.greedy_policy(), num_frames, seed)
    layers = kit.q_network(envs.observation_space, teacher.num_actions).layers
    model = kit.Sequential([keras.Input(frames.shape[1:]), *layers], name="clone")
    kit.initialize_weights(model, seed)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    model.fit(frames, actions, callbacks=[run.backup(name)], **options)
    model.save(run.output_dir / f"{name}.keras")
    return model


def best_of(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the policy that does what a model rates highest."""
    best = kit.compiled(lambda obs: ops.argmax(model(obs, training=False), axis=-1))
    return lambda obs: ops.convert_to_numpy(best(obs))


# --- Q-networks -----------------------------------------------------------------------


def q_network(
    way: str, envs: BoardGame, learned: Mapping[str, Any], seed: int
) -> keras.Sequential:
    """Builds the Q-network of a way, with the weights that it begins with.

    Args:
        way: One of `WAYS`.
        envs: The game.
        learned: The trained `autoencoder` and `clone`, of ways that need them.
        seed: Seed of the weights that weren't trained.
    """
    space, num_actions = envs.observation_space, int(envs.action_space.n)
    if way in BY_CODE:
        trained = learned["autoencoder"].encoder
        code = keras.models.clone_model(trained)  # each way has its own
        network = kit.q_network(space, num_actions, units=(128,), network=code)
        kit.initialize_weights(network, seed)
        code.set_weights(trained.get_weights())
        code.trainable = way == "fine_tuned"
        return network
    if way == "linear":
        network = kit.q_network(space, num_actions, units=(), network="mlp")
    else:
        network = kit.q_network(space, num_actions)
    kit.initialize_weights(network, seed)
    if way == "imitation":
        # But for the last layer: what a classifier gives aren't Q-values.
        pairs = zip(network.layers[:-1], learned["clone"].layers[:-1], strict=True)
        for layer, trained in pairs:
            layer.set_weights(trained.get_weights())
    return network


# --- The comparison -------------------------------------------------------------------


def report(
    run: Run,
    results: list[Result],
    models: list[dict[str, Any]],
    envs: BoardGame,
    test: dict[str, Any],
) -> dict:
    """Draws the pictures, saves model.keras, and writes metrics.json.

    Args:
        run: The run.
        results: Of each agent.
        models: Of each seed, by name; the pictures show those of the first.
        envs: The game to play in.
        test: How many episodes, and their seed.
    """
    learned = models[0]
    ways = [way for way in WAYS if way in learned]
    agent = learned[ways[0]]
    agent.save(run.output_dir / "model.keras")
    random = play_episodes(envs, random_policy(envs, run.seed), **test)["return"]
    metrics, baselines = figures(results, run.config)
    seeds = ", ".join(str(run.seed + i) for i in range(len(models)))
    title = f"Ways to see {run.config['env']} ({run.backend}, seed {seeds})"
    logs = {way: [x.logs for x in results if x.way == way] for way in ways}
    curves = {
        LABELS[way]: (x[0]["timesteps"], [log["return"] for log in x])
        for way, x in logs.items()
    }
    plot_comparison(run.output_dir / "curves.png", curves, title=title, baseline=random)
    frames, _ = record(envs, agent.greedy_policy(), 100 * envs.num_envs, run.seed)
    rows = {"what there is": paint(frames)}
    if autoencoder := learned.get("autoencoder"):
        reconstructions = autoencoder.predict(frames, verbose=0)
        metrics["reconstruction_mse"] = np.mean((reconstructions - frames) ** 2)
        baselines["mean_picture_mse"] = np.mean(np.var(frames, axis=0))
        rows["what the\nautoencoder\ngives back"] = paint(reconstructions)
    shown = np.linspace(0, len(frames) - 1, PICTURES + 1).astype(int)[1:]
    rows = {label: pictures[shown] for label, pictures in rows.items()}
    maps = {
        LABELS[way]: saliency(learned[way].q_network, frames[shown]) for way in ways
    }
    draw_seeing(run, title, rows, maps, frames[shown].any(axis=-1), envs.channels)
    return run.finish(
        history=[
            {"way": x.way, "seed": x.seed, "epoch": i}
            | {name: values[i] for name, values in x.logs.items()}
            for x in results
            for i in range(len(x.logs.get("timesteps", ())))
        ],
        metrics=metrics,
        baselines={"random_return": random, **baselines},
        throughput=(np.median(logs[ways[0]][0]["steps_per_second"]), "env steps/s"),
        compile_seconds=kit.compile_seconds(),
    )


def figures(results: list[Result], config: Mapping[str, Any]) -> tuple[dict, dict]:
    """Returns metrics and baselines: means over the seeds, and what they cost.

    The steps that others have made for an agent count, too: `imitation` needs a trained
    agent, and the pictures of its play.
    """
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}
    steps = max(int(x.logs["timesteps"][-1]) for x in results if x.logs)
    extra = dict.fromkeys(BY_CODE, config["pretraining_frames"])
    extra["imitation"] = config["pretraining_frames"] + steps
    for way in dict.fromkeys(x.way for x in results):
        returns = {x.seed: x.eval_return for x in results if x.way == way}
        name = "eval_return" if way == "end_to_end" else f"{way}_eval_return"
        figures = baselines if way == "linear" else metrics
        figures[name] = np.mean([*returns.values()])
        if len(returns) > 1:
            figures |= {f"{name}_seed_{seed}": x for seed, x in returns.items()}
        if way in extra:
            metrics[f"{way}_extra_steps"] = extra[way]
    metrics |= {"total_timesteps": steps, "eval_episodes": config["eval_episodes"]}
    return metrics, baselines


def saliency(network: keras.Model, frames: np.ndarray) -> np.ndarray:
    """Returns how much each cell matters for the value of the best action.

    The largest |d max_a Q(s, a) / d s| of a cell's channels.

    Args:
        network: From `(B, H, W, C)` to Q-values `(B, A)`.
        frames: `(B, H, W, C)`, float32.

    Returns:
        `(B, H, W)`.
    """

    @kit.compiled
    def derivative(frames):
        return kit.gradient(
            lambda s: ops.sum(ops.max(network(s, training=False), axis=-1)), frames
        )

    return np.abs(ops.convert_to_numpy(derivative(frames))).max(axis=-1)


def draw_seeing(
    run: Run,
    title: str,
    pictures: Mapping[str, np.ndarray],
    maps: Mapping[str, np.ndarray],
    occupied: np.ndarray,
    channels: Sequence[str],
) -> None:
    """Draws seeing.png.

    Args:
        run: The run.
        title: Game, backend and seeds.
        pictures: Rows of pictures `(B, H, W, 3)` by label.
        maps: Rows of saliency maps `(B, H, W)` by label.
        occupied: Where there is something, `(B, H, W)`: outlines in the maps.
        channels: Names of the things.
    """
    rows = {**pictures, **maps}
    height, width = occupied.shape[1:]
    with run.figure("seeing.png", figsize=(8, 1.15 * len(rows) + 1.2)) as figure:
        figure.suptitle(
            f"{title}\nMaps: how much each cell matters for the best action"
        )
        panels = figure.subplots(len(rows), len(occupied), squeeze=False)
        for row, (label, images) in zip(panels, rows.items(), strict=True):
            row[0].set_ylabel(label, rotation=0, ha="right", va="center")
            for axes, image, there in zip(row, images, occupied, strict=True):
                axes.imshow(image, cmap="magma", vmin=0, vmax=image.max() or 1)
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if label in maps:
                    fine = there.repeat(8, axis=0).repeat(8, axis=1)
                    place = (-0.5, width - 0.5, -0.5, height - 0.5)
                    style: Any = {
                        "colors": "#00e5ff",
                        "linewidths": 0.7,
                        "extent": place,
                    }
                    axes.contour(fine, [0.5], **style)
        things = [
            Patch(facecolor="#" + bytes(color).hex(), edgecolor="gray", label=name)
            for name, color in zip(channels, COLORS, strict=False)
        ]
        figure.legend(handles=things, loc="outside lower center", ncols=5)


if __name__ == "__main__":
    command_line(main)
