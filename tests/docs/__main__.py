"""``make docs``: bring the generated tables of all documents up to date."""

from tests.docs.generate import ROOT, documents, render

if __name__ == "__main__":
    for path in documents():
        before = path.read_text(encoding="utf-8")
        after = render(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))  # noqa: T201 - a command reports to its terminal
