"""Lines and tables, on a terminal or in a log file."""

import rich.box
import rich.console
import rich.table
import rich.text


def print_line(console, text):
    """Prints a line as it is: not wrapped, brackets are no markup, and no character is fatal."""
    text = text.encode(console.encoding, "replace").decode(console.encoding)
    console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


def print_table(console, rows, head=None):
    """A drawn table on a terminal; elsewhere columns aligned by spaces. Numbers to the right."""
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
