"""HTML as a strict reader sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, links, and texts; a closing tag that closes another one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str | None] = []
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v for k, v in attributes if k in {"href", "src", "xlink:href"}]
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def well_formed(text: str) -> Page:
    """Everything that is opened is closed, and the page needs nothing but itself."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert all(link is not None and link.startswith("#") for link in page.links)
    assert not {"script", "link", "img"} & set(page.tags)
    return page
