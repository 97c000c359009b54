"""Find the heads that hold a role, silence them, and see what the model predicts without them.

python examples/find_and_cut_heads.py [MODEL] [ROLE]
"""

import sys

import tempo

TEXT = "When Mary and John went to the store, John gave a drink to"


def main(name: str = "smollm2-135m", role: str = "induction") -> None:
    """Print the heads of the role, and the most probable next tokens with and without them."""
    model = tempo.load_model(name)
    held = tempo.heads(model, roles=[role], check_effects=False).holders(role)
    print(f"{role}: {', '.join(held[:8]) or 'held by no head'}")
    if not held:
        return
    for label, edits in (("as it is", []), ("cut", [tempo.edits.zero_heads(*held)])):
        found = tempo.forward(model, TEXT, edits=edits).log_probability()[-1]
        best = found.argsort()[::-1][:5].tolist()
        print(f"{label}: {', '.join(repr(model.token_text(token)) for token in best)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
