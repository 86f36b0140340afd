"""Prints lines and tables on a terminal or into a log file."""

import rich.box
import rich.console
import rich.table
import rich.text


def print_line(console, text):
    """Prints a line unchanged, without wrapping and without markup.

    Characters that the console's encoding lacks are replaced.
    """
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


def print_table(console, rows, head=None):
    """Prints a table: with borders on a terminal, with columns aligned by spaces elsewhere.

    Args:
      console: the rich console to print to.
      rows: the rows, each a sequence of strings.
      head: the headings, if any. With headings, all columns but the first are aligned right.
    """
    if console.is_terminal:
        table = rich.table.Table(box=rich.box.ROUNDED, show_header=head is not None)
        for number, name in enumerate(head or ("", "")):
            justify = "right" if head and number else "left"
            table.add_column(name, justify=justify, overflow="fold")
        for row in rows:
            table.add_row(*(rich.text.Text(cell) for cell in row))
        console.print(table)
        return
    rows = [head, *rows] if head else rows
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        cells = [cell.rjust(w) if head else cell for cell, w in zip(cells, widths[1:], strict=True)]
        print_line(console, "  ".join([name.ljust(widths[0]), *cells]))
