/// The script that keeps the page of a folder up to date; without it the page is the same, until it is loaded again.
///
/// It asks for its own page from time to time, by the tag of what it has, and takes over the rows that have changed. This
/// works wherever the page itself could be had, by a share's link as well, which lets nobody see the events of the
/// session; a browser couldn't show a key for their stream. While nothing changes, an answer is a 304.
enum FolderScript {
  /// Allows this script by its digest, no other one, and requests to this server only.
  static let policy = "script-src '\(Page.digest(text))'; connect-src 'self'"

  /// The pause is 2 s, up to 10 s while nothing changes, and 20 times as long as an answer takes, so that a large folder
  /// costs little; nothing is asked for while nobody can see the page. Rows are kept as long as they are the same, and
  /// with them the focus and what is selected; the scrolled place is held by a row that can be seen.
  static let text = """
    'use strict';
    (() => {
      const least = 2000, most = 10000;
      let tag = null, pause = least, timer = null, running = false;
      document.documentElement.style.overflowAnchor = 'none';
      const note = document.createElement('p');
      note.className = 'soft';
      note.setAttribute('role', 'status');
      document.querySelector('header').append(note);
      const say = text => { if (note.textContent !== text) note.textContent = text; };
      const key = row => {
        const link = row.querySelector('a');
        return link ? link.getAttribute('href') : row.cells[0].textContent;
      };
      // Two names that can't be written in UTF-8 may look the same.
      const keyed = rows => {
        const map = new Map();
        for (const row of rows) {
          let name = key(row);
          while (map.has(name)) name += ' ';
          map.set(name, row);
        }
        return map;
      };
      const focusOn = row => {
        const link = row && row.querySelector('a');
        if (link) link.focus({preventScroll: true});
      };

      const merge = (body, page) => {
        const old = keyed([...body.rows]);
        const wanted = keyed([...page.rows]);
        let place = null;
        let isLost = false;
        for (const [name, row] of old) {
          if (wanted.has(name)) continue;
          if (row.contains(document.activeElement)) {
            isLost = true;
            place = row.nextElementSibling;
          } else if (row === place) {
            place = row.nextElementSibling;
          }
          row.remove();
          old.delete(name);
        }
        if (isLost) focusOn(place || body.lastElementChild);
        place = body.firstElementChild;
        for (const [name, row] of wanted) {
          const known = old.get(name);
          if (!known) {
            row.classList.add('fresh');
            body.insertBefore(document.adoptNode(row), place);
            continue;
          }
          let isNew = false;
          [...row.cells].forEach((cell, index) => {
            if (known.cells[index].innerHTML === cell.innerHTML) return;
            known.cells[index].replaceWith(document.adoptNode(cell.cloneNode(true)));
            isNew = true;
          });
          if (isNew) {
            known.classList.remove('fresh');
            void known.offsetWidth;
            known.classList.add('fresh');
          }
          if (known === place) place = place.nextElementSibling;
          else body.insertBefore(known, place);
        }
      };

      // The rows that can be seen and where they are, first the one that has the focus.
      const seen = () => {
        const places = [];
        for (const row of document.querySelectorAll('tbody tr')) {
          const {top, bottom} = row.getBoundingClientRect();
          if (top > innerHeight) break;
          if (bottom <= 0) continue;
          if (row.contains(document.activeElement)) places.unshift([row, top]);
          else places.push([row, top]);
        }
        return places;
      };

      const show = page => {
        const places = scrollY > 0 ? seen() : [];
        const [main, next] = [document, page].map(root => root.querySelector('main'));
        const [body, rows] = [main, next].map(root => root.querySelector('tbody'));
        if (body && rows) merge(body, rows);
        else main.replaceChildren(...[...next.childNodes].map(node => document.adoptNode(node)));
        const [pages, links] = [main, next].map(root => root.querySelector('.pages'));
        if (body && pages?.outerHTML !== links?.outerHTML) {
          pages?.remove();
          if (links) main.append(document.adoptNode(links));
        }
        const [items, count] = [document, page].map(root => root.querySelector('.tools span'));
        if (items.textContent !== count.textContent) items.textContent = count.textContent;
        const held = places.find(([row]) => row.isConnected);
        if (held) scrollBy({top: held[0].getBoundingClientRect().top - held[1], behavior: 'instant'});
      };

      const look = async () => {
        const headers = {Accept: 'text/html'};
        if (tag) headers['If-None-Match'] = tag;
        const answer = await fetch(location.href, {headers, cache: 'no-store', redirect: 'error'});
        if (answer.status === 304) return false;
        if ([401, 403, 404, 410].includes(answer.status)) {
          say('This folder can’t be seen any more; what is shown is old.');
          return null;
        }
        // A file that took the folder's place is somebody else's page.
        const isFolder = answer.ok && answer.headers.has('ETag') && !answer.headers.has('Content-Disposition');
        if (!isFolder) throw new Error(`status ${answer.status}`);
        const text = await answer.text();
        const isFirst = tag === null;
        tag = answer.headers.get('ETag');
        show(new DOMParser().parseFromString(text, 'text/html'));
        return !isFirst;
      };

      const round = async () => {
        timer = null;
        if (running || document.hidden) return;
        running = true;
        const start = performance.now();
        let isOver = false;
        try {
          const hasChanged = await look();
          isOver = hasChanged === null;
          pause = hasChanged ? least : Math.min(most, pause * 1.25);
          if (!isOver) say('');
        } catch {
          pause = Math.min(30000, pause * 2);
          say('The server doesn’t answer; what is shown may be old.');
        }
        running = false;
        if (!isOver) wait(Math.max(pause, 20 * (performance.now() - start)));
      };
      const wait = time => {
        clearTimeout(timer);
        timer = document.hidden ? null : setTimeout(round, time);
      };
      document.addEventListener('visibilitychange', () => {
        if (document.hidden) return;
        pause = least;
        if (timer === null && !running) wait(0);
      });
      wait(least);
    })();
    """
}
