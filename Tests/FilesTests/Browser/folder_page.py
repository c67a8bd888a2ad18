"""Looks at pages of folders in a Chromium that runs already, while the folders change.

folder_page.py BROWSER_DIRECTORY URL_OF_FILES WORKSPACE URL_OF_SHARE [SCREENSHOTS]

The share is of the folder `shared` in the workspace. Ends with 1 and what was found when something isn't as it should be.
"""

import asyncio
import base64
import json
import os
import pathlib
import shutil
import sys
import time
import urllib.request

import websockets

SECONDS = 60


class Page:
    """A page of the browser, by its own protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.number = 0
        self.refusals = []

    async def call(self, method, **parameters):
        self.number += 1
        number = self.number
        await self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = json.loads(await asyncio.wait_for(self.socket.recv(), SECONDS))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self.hear(message)

    def hear(self, message):
        entry = message.get("params", {}).get("entry", {})
        if message["method"] == "Log.entryAdded" and "Content Security Policy" in entry["text"]:
            self.refusals.append(entry["text"])

    async def run(self, script):
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script, what=None):
        end = time.monotonic() + SECONDS
        while not await self.run(script):
            if time.monotonic() > end:
                text = await self.run("document.body.innerText")
                raise AssertionError(f"{what or script}\n{text[:2000]}")
            await asyncio.sleep(0.05)

    async def open(self, url):
        await self.run("window.isOld = true")
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && !window.isOld && location.protocol !== 'about:'", url)

    async def size(self, width, height, is_mobile):
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_mobile
        )

    async def picture(self, name):
        if len(sys.argv) > 5:
            data = (await self.call("Page.captureScreenshot"))["data"]
            pathlib.Path(sys.argv[5], name + ".png").write_bytes(base64.b64decode(data))


LINK = "(name => [...document.querySelectorAll('td:first-child a')].find(link => link.textContent === name))"
NAMES = "[...document.querySelectorAll('tbody tr')].map(row => row.cells[0].textContent)"
NOTE = "document.querySelector('header p:last-child').textContent"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    # As a whole, so that a look in between finds the old or the new one.
    partial = path.parent.parent / "partial"
    partial.write_text(text)
    partial.rename(path)


async def keeps_its_place(page, files, workspace):
    many = workspace / "many"
    for number in range(60):
        write(many / f"f{number:02}", "x")
    write(many / "<img src=x onerror=alert(1)>", "x")
    await page.size(390, 844, True)
    await page.open(files + "/many/")
    assert await page.run("document.querySelectorAll('tbody tr').length") == 62
    await page.run(f"""
        const link = {LINK}('f30');
        link.mark = 1;
        link.focus();
        link.scrollIntoView({{block: 'center'}});
    """)
    before = await page.run("document.activeElement.getBoundingClientRect().top")
    assert await page.run("scrollY") > 100
    for number in range(5):
        write(many / f"a{number}", "new")
    write(many / "f31", "y" * 4000)
    (many / "f29").unlink()
    (many / "sub").mkdir()
    await page.until(f"!!{LINK}('a0') && !!{LINK}('sub/')")
    await page.until(f"{LINK}('f31').closest('tr').innerText.includes('4.0 kB') && !{LINK}('f29')")
    names = await page.run(NAMES)
    assert names[1:8] == ["sub/", "<img src=x onerror=alert(1)>", "a0", "a1", "a2", "a3", "a4"], names
    assert names[8:] == [f"f{number:02}" for number in range(60) if number != 29], names
    assert await page.run("document.querySelector('.tools span').textContent") == "66 items"
    assert await page.run("document.activeElement.mark") == 1, await page.run("document.activeElement.outerHTML")
    after = await page.run("document.activeElement.getBoundingClientRect().top")
    assert abs(after - before) < 2, (before, after)
    assert not await page.run("!!document.querySelector('main img, main script')")
    await page.picture("phone")
    # The focus of what goes passes to what follows.
    (many / "f30").unlink()
    await page.until(f"!{LINK}('f30')")
    assert await page.run("document.activeElement.textContent") == "f31"
    # While nothing changes, nothing is sent.
    await page.until("performance.getEntriesByType('resource').some(entry => entry.responseStatus === 304)")

    # Pages of a long folder.
    await page.size(1280, 900, False)
    await page.open(files + "/many/?limit=10")
    for number in range(5):
        (many / f"a{number}").unlink()
    await page.until(f"{NAMES}.includes('f07')")
    assert await page.run("document.querySelectorAll('.pages').length") == 1
    await page.run("document.querySelector('.pages a').click()")
    await page.until("location.search.includes('cursor') && document.readyState === 'complete'")
    await page.until(f"{NAMES}.includes('f08')")
    for number in range(12, 60):
        (many / f"f{number:02}").unlink(missing_ok=True)
    await page.until("![...document.querySelectorAll('.pages a')].some(link => link.textContent === 'Next page')")
    await page.picture("desktop")


async def empties_and_fills(page, files, workspace):
    empty = workspace / "empty"
    empty.mkdir()
    await page.open(files + "/empty/")
    assert "This folder is empty." in await page.run("document.body.innerText")
    write(empty / "first", "x")
    await page.until(f"!!{LINK}('first')")
    assert "empty." not in await page.run("document.body.innerText")
    write(empty / "second", "x")
    await page.until(f"!!{LINK}('second')")
    (empty / "first").unlink()
    (empty / "second").unlink()
    await page.until("document.body.innerText.includes('This folder is empty.')")
    empty.rmdir()
    await page.until(f"{NOTE}.includes('can’t be seen any more')")
    await page.picture("gone")


async def shows_no_more_than_is_shared(page, share, workspace):
    await page.open(share)
    write(workspace / "shared" / "new", "x")
    await page.until(f"!!{LINK}('new')")
    await page.picture("shared")
    # A page that somebody puts in the folder's place is not taken for one of the server's.
    shutil.rmtree(workspace / "shared")
    write(workspace / "shared", "<!doctype html><main><table><tbody><tr><td id=evil>x</table></main>")
    await page.until(f"{NOTE} !== ''")
    assert not await page.run("!!document.querySelector('#evil')")
    assert await page.run(f"!!{LINK}('new')")
    (workspace / "shared").unlink()
    write(workspace / "shared" / "again", "x")
    await page.until(f"!!{LINK}('again') && {NOTE} === ''")


async def main():
    directory, files, workspace, share = sys.argv[1:5]
    workspace = pathlib.Path(workspace)
    file = pathlib.Path(directory, "DevToolsActivePort")
    end = time.monotonic() + SECONDS
    while not file.exists() or "\n" not in file.read_text():
        assert time.monotonic() < end, "the browser doesn't start"
        await asyncio.sleep(0.05)
    port = file.read_text().splitlines()[0]
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?about:blank", method="PUT")
    target = json.load(opener.open(request, timeout=SECONDS))
    async with websockets.connect(target["webSocketDebuggerUrl"], max_size=None, ping_interval=None) as socket:
        page = Page(socket)
        await page.call("Page.enable")
        await page.call("Log.enable")
        await keeps_its_place(page, files, workspace)
        await empties_and_fills(page, files, workspace)
        await shows_no_more_than_is_shared(page, share, workspace)
        assert page.refusals == [], page.refusals


asyncio.run(main())
