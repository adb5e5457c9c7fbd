"""Synonym trees of action verbs (ACE section 3.2, Fig. 2): reads, checks, cuts and writes them."""

import difflib
import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from ace_dist.concepts.actions import base_forms, listed_texts, normalise
from ace_dist.utils.errors import LabelError
from ace_dist.utils.files import write_text
from ace_dist.utils.reading import read_object, why_no_file

MAKING = "`ace synonyms actions=annotations.csv output=trees.json source=wordnet children=6` makes one"  # in messages
DIGEST = "trees_sha256"  # in the `_meta` of a file that a build or a sheet wrote: of its trees, as they were then
Node = Mapping[str, Any] | tuple[str, ...]  # children with their own nodes, or, at the last order, children alone


class SynonymTrees:
    """One tree per root verb: root → children → grandchildren, every parent among its own children.

    `size` and `grand_size` cut each node to its first M children (M of the paper; `None` keeps all), the parent
    always kept and counted unless `include_parent=False`, which reads M as "M synonyms besides the parent".
    Files may hold levels of any size, which may differ between trees, and more orders than two (`orders`): the sampler
    uses two, `grand_size` cuts the second and all deeper ones.

    `words` are nodes of verbs that a test asks for and no training draws: root -> verb -> its synonyms, in a file under
    the key `_words`. `node` finds them, and every first-order child of the whole file, whatever `size` is.

    Verbs are kept, and looked up, in the one form of `normalise`: "Pick_Up" is "pick up".
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, Iterable[str] | Mapping[str, Any]]],
        meta: Mapping[str, Any] | None = None,
        source: str = "synonym trees",
        size: int | None = None,
        grand_size: int | None = None,
        include_parent: bool = True,
        words: Mapping[str, Mapping[str, Iterable[str]]] | None = None,
    ) -> None:
        self.source = source
        self.meta = dict(meta or {})
        full = cast("Mapping[str, Node]", copy_node(nodes, source))
        self.orders = validate(full, source)
        extra = copy_node(words or {}, f"{source}: _words")
        validate_words(extra, full, source)
        self.words = cast("Mapping[str, Mapping[str, Node]]", extra)
        self._named = {
            root: {**cast("Mapping[str, Node]", tree), **self.words.get(root, {})} for root, tree in full.items()
        }
        self._cut_named = partial(cut_node, sizes=(grand_size,), include_parent=include_parent)
        self._nodes: dict[str, Mapping[str, Any]] = {
            root: cast("Mapping[str, Any]", cut_node(root, tree, (size, grand_size), include_parent))
            for root, tree in full.items()
        }

    @classmethod
    def load(
        cls, path: str | Path, size: int | None = None, grand_size: int | None = None, include_parent: bool = True
    ) -> Self:
        """Read a tree file. Raises `LabelError` naming the file when it is missing, not JSON, or breaks a rule."""
        path = Path(path)
        if not path.is_file():
            raise LabelError(
                f"synonym tree file {path} {why_no_file(path)}; set dataset.synonyms to a JSON tree file; {MAKING}"
            )
        raw = read_object(path, LabelError, " (dataset.synonyms: an object of root verbs)")
        meta, words = raw.pop("_meta", {}), raw.pop("_words", {})
        if not isinstance(meta, dict):
            raise LabelError(f"{path}: _meta must be an object, found {type(meta).__name__}")
        return cls(raw, meta, str(path), size, grand_size, include_parent, words)

    def save(self, path: str | Path) -> None:
        """Write the trees as JSON with one line a node, so that a person can read it and a diff shows what changed."""
        write_text(Path(path), self._text({"_meta": self.meta}))

    def _text(self, head: Mapping[str, Any]) -> str:
        words = {"_words": self.words} if self.words else {}
        return node_text({**head, **self._nodes, **words}) + "\n"

    def sign(self) -> None:
        """Note in `meta` what the trees and `words` are, so that `is_edited` can tell."""
        self.meta[DIGEST] = self._sha256()

    @property
    def is_edited(self) -> bool:
        """Whether trees or `words` of a whole file differ from those that were signed; False where nothing was."""
        return DIGEST in self.meta and bool(self.meta[DIGEST] != self._sha256())

    def _sha256(self) -> str:
        return hashlib.sha256(self._text({}).encode()).hexdigest()

    @property
    def roots(self) -> tuple[str, ...]:
        return tuple(self._nodes)

    def __contains__(self, root: str) -> bool:
        return normalise(root) in self._nodes

    def children(self, root: str, *path: str) -> tuple[str, ...]:
        """First-order children of `root`, or, with a child, the second-order children below it, and so on.

        Raises `LabelError` naming the file and the nearest known verb.
        """
        root, path = normalise(root), tuple(map(normalise, path))
        node: Node | None = self._nodes.get(root)
        if node is None:
            raise LabelError(f"no synonym tree for the verb {root!r} in {self.source}{near(root, self._nodes)}")
        for depth, child in enumerate(path):
            if child not in node:
                parent = " > ".join((root, *path[:depth]))
                raise LabelError(f"{child!r} is not a child of {parent!r} in {self.source}{near(child, node)}")
            if not isinstance(node, Mapping):
                raise LabelError(f"{self.source} has {self.orders} orders, none below {' > '.join((root, *path))!r}")
            node = node[child]
        return tuple(node)

    def node(self, root: str, verb: str) -> tuple[str, ...] | None:
        """The synonyms of a verb that names the concept `root` in a test; None where the file has no node for it.

        The root stands for its first-order children, a first-order child or one of `words` for its own children, and
        any other verb for those of the tree whose root it is.
        """
        root, verb = normalise(root), normalise(verb)
        if verb != root and verb in self._named.get(root, {}):
            return tuple(self._cut_named(verb, self._named[root][verb]))
        return self.children(verb) if verb in self else None

    def named(self, root: str) -> tuple[str, ...]:
        """The verbs that have a node below `root`: its first-order children in the whole file, and its `words`."""
        return tuple(self._named[normalise(root)])

    def vocabulary(self, root: str) -> tuple[str, ...]:
        """Every verb of both orders and of `words` below a root, in the whole file, whatever `size` cuts."""
        return tuple(dict.fromkeys(verb for node in self._named[normalise(root)].values() for verb in node))

    def nodes(self, root: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
        """Every inner node of a tree with its children, parents first: `(root,)`, `(root, child)`, ..."""
        return ((path, tuple(node)) for path, node in walk((normalise(root),), self._nodes[normalise(root)]))

    def without(self, words: Collection[str], roots: Collection[str]) -> "SynonymTrees":
        """A copy in which the trees of `roots` hold none of `words`, at any order."""
        nodes = {root: drop_words(tree, words) if root in roots else tree for root, tree in self._nodes.items()}
        return SynonymTrees(cast("Mapping[str, Mapping[str, Any]]", nodes), self.meta, self.source, words=self.words)

    def require(self, verbs: Iterable[str]) -> None:
        """Raise `LabelError`, naming every verb without a tree at once."""
        missing = sorted({verb for verb in map(normalise, listed_texts(verbs)) if verb not in self._nodes})
        if missing:
            raise LabelError(
                f"no synonym tree for the verb{'s' if len(missing) > 1 else ''} {', '.join(map(repr, missing))} in "
                f"{self.source}{near(missing[0], self._nodes)}; add it as "
                f'{{"{missing[0]}": {{"{missing[0]}": ["{missing[0]}", ...], ...}}}} or set dataset.synonyms to '
                f"another file; {MAKING}"
            )

    def verbs(self) -> tuple[str, ...]:
        """Every verb that occurs at any level, sorted."""
        return tuple(sorted({verb for root in self._nodes for _, children in self.nodes(root) for verb in children}))


def copy_node(node: Any, where: str) -> Node:
    """Objects in their order, lists as tuples, verbs in their one form.

    Raises `LabelError` naming `where` for anything else, and for a verb that an object has twice.
    """
    if isinstance(node, str) or not isinstance(node, Iterable):
        raise LabelError(f"{where} holds {node!r} where a list or an object of verbs is expected")
    verbs = tuple(node)
    if strange := [verb for verb in verbs if not isinstance(verb, str) or not normalise(verb)]:
        raise LabelError(f"{where} holds {strange[0]!r} where a verb is expected")
    names = tuple(map(normalise, verbs))
    if not isinstance(node, Mapping):
        return names
    if twice := [verb for verb, name in zip(verbs, names, strict=True) if names.count(name) > 1]:
        raise LabelError(f"{where} holds {' and '.join(map(repr, twice))}, which are one verb")
    return {name: copy_node(node[verb], f"{where} > {name!r}") for verb, name in zip(verbs, names, strict=True)}


def drop_words(node: Node, words: Collection[str]) -> Node:
    if not isinstance(node, Mapping):
        return tuple(verb for verb in node if verb not in words)
    return {verb: drop_words(below, words) for verb, below in node.items() if verb not in words}


def walk(path: tuple[str, ...], node: Node) -> Iterator[tuple[tuple[str, ...], Node]]:
    """The node at `path` and all inner nodes below it, parents first."""
    yield path, node
    if isinstance(node, Mapping):
        for child, below in node.items():
            yield from walk((*path, child), below)


def validate(nodes: Mapping[str, Node], source: str) -> int:
    """The rules of a tree file; returns its number of orders. Raises `LabelError` naming the node that breaks one."""
    if not nodes:
        raise LabelError(f"{source} holds no tree")
    orders = 0
    for root, tree in nodes.items():
        if not isinstance(tree, Mapping):
            raise LabelError(
                f"{source}: {root!r} holds a list, expected an object of its children with their own synonyms"
            )
        for path, node in walk((root,), tree):
            parent, children, where = path[-1], tuple(node), f"{source}: {' > '.join(map(repr, path))}"
            if parent not in children:
                raise LabelError(f"{where}: the parent {parent!r} is not among its own children {list(children)}")
            if twice := sorted({verb for verb in children if children.count(verb) > 1}):
                raise LabelError(f"{where}: {', '.join(map(repr, twice))} occurs more than once")
            if not isinstance(node, Mapping):
                orders = orders or len(path)
                if len(path) != orders:
                    raise LabelError(f"{where} ends at order {len(path)}, other nodes at {orders}")
    return orders


def validate_words(words: Node, nodes: Mapping[str, Node], source: str) -> None:
    """The rules of `_words`: known roots, no first-order child again, and those of a node. Raises `LabelError`."""
    if not isinstance(words, Mapping) or not all(isinstance(below, Mapping) for below in words.values()):
        raise LabelError(f"{source}: _words must be an object, root -> verb -> list of synonyms")
    for root, below in words.items():
        where = f"{source}: _words > {root!r}"
        if root not in nodes:
            raise LabelError(f"{where}: there is no tree of that verb{near(root, nodes)}")
        if again := sorted(set(below) & set(nodes[root])):
            raise LabelError(f"{where}: {', '.join(again)} has a node in the tree already")
        validate({root: {root: (root,), **below}}, where)


def cut_node(parent: str, node: Node, sizes: tuple[int | None, ...], include_parent: bool) -> Node:
    """A node cut to M children, the parent and its first synonyms; `sizes`: M by order, the last for all deeper.

    Raises `LabelError` if there are fewer.
    """
    children = tuple(node)
    if (size := sizes[0]) is not None:
        synonyms = [verb for verb in children if verb != parent]
        count = size - include_parent
        if not 0 <= count <= len(synonyms):
            raise LabelError(
                f"{parent!r} has {len(synonyms)} synonyms besides itself, M asks for {count}; lower method.children or "
                f"method.grandchildren (in a test: evaluation.children or grandchildren), or extend the tree file"
            )
        children = (parent, *synonyms[:count])
    if not isinstance(node, Mapping):
        return children
    return {child: cut_node(child, node[child], sizes[1:] or sizes, include_parent) for child in children}


def node_text(node: Any, depth: int = 1) -> str:
    """JSON of an object with one entry a line, lists within it on one line."""
    if not isinstance(node, Mapping) or not node:
        return json.dumps(node, ensure_ascii=False)
    entries = (f"{' ' * depth}{json.dumps(k, ensure_ascii=False)}: {node_text(v, depth + 1)}" for k, v in node.items())
    return "{\n" + ",\n".join(entries) + f"\n{' ' * (depth - 1)}}}"


def near(word: str, vocabulary: Iterable[str]) -> str:
    """`; nearest: ...` when a word of the vocabulary is near, its base form first, else nothing."""
    known = list(vocabulary)
    match = [form for form in base_forms(word) if form in known] or difflib.get_close_matches(word, known, n=1)
    return f"; nearest: {match[0]!r}" if match else ""
