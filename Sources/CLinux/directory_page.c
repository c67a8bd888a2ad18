#define _GNU_SOURCE
#include "directory_page.h"
#include "entries.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint64_t head_of(const char *name, size_t length)
{
    uint64_t head = 0;
    memcpy(&head, name, length < sizeof head ? length : sizeof head);
    return be64toh(head);
}

// Below 0 if `a` comes before `b`.
static int compare(const struct clinux_directory_entry *a, const struct clinux_directory_entry *b)
{
    if (a->is_directory != b->is_directory) return a->is_directory ? -1 : 1;
    if (a->head != b->head) return a->head < b->head ? -1 : 1;
    int result = memcmp(a->name, b->name, a->length < b->length ? a->length : b->length);
    return result != 0 ? result : (a->length > b->length) - (a->length < b->length);
}

static void swap(struct clinux_directory_entry *a, struct clinux_directory_entry *b)
{
    struct clinux_directory_entry old = *a;
    *a = *b;
    *b = old;
}

// Lets an entry sink in a heap, in which none comes before those below it.
static void sink(struct clinux_directory_entry *heap, size_t length, size_t index)
{
    for (;;) {
        size_t last = index, left = 2 * index + 1, right = left + 1;
        if (left < length && compare(&heap[left], &heap[last]) > 0) last = left;
        if (right < length && compare(&heap[right], &heap[last]) > 0) last = right;
        if (last == index) return;
        swap(&heap[index], &heap[last]);
        index = last;
    }
}

static void make_heap(struct clinux_directory_entry *entries, size_t length)
{
    for (size_t index = length / 2; index-- > 0;) sink(entries, length, index);
}

// Keeps an entry if it is among the first `limit` so far.
static int offer(
    struct clinux_directory_page *page, size_t *capacity, size_t limit, const struct clinux_directory_entry *entry)
{
    if (page->length == limit) {
        page->is_complete = 0;
        if (limit == 0 || compare(entry, &page->entries[0]) > 0) return 0;
    } else if (page->length == *capacity) {
        size_t grown = *capacity * 2 + 64;
        if (grown > limit) grown = limit;
        struct clinux_directory_entry *entries = reallocarray(page->entries, grown, sizeof *entries);
        if (entries == NULL) return -1;
        page->entries = entries;
        *capacity = grown;
    }
    char *name = malloc(entry->length + 1);
    if (name == NULL) return -1;
    memcpy(name, entry->name, entry->length + 1);
    struct clinux_directory_entry kept = *entry;
    kept.name = name;
    if (page->length == limit) {
        free((char *)page->entries[0].name);
        page->entries[0] = kept;
        sink(page->entries, limit, 0);
    } else {
        page->entries[page->length++] = kept;
        if (page->length == limit) make_heap(page->entries, limit);
    }
    return 0;
}

int clinux_read_directory_page(
    int fd, const struct clinux_directory_entry *after, size_t limit, struct clinux_directory_page *page)
{
    *page = (struct clinux_directory_page){.is_complete = 1};
    DIR *directory = stream_of_directory(fd);
    if (directory == NULL) return -1;
    struct clinux_directory_entry place;
    if (after != NULL) {
        place = *after;
        place.head = head_of(place.name, place.length);
    }
    size_t capacity = 0;
    int result = 0;
    struct dirent *found;
    while (result == 0 && (errno = 0, found = readdir(directory)) != NULL) {
        if (is_dot(found->d_name)) continue;
        page->count++;
        size_t length = strlen(found->d_name);
        struct clinux_directory_entry entry = {
            .head = head_of(found->d_name, length),
            .length = length,
            .name = found->d_name,
            .is_directory = is_directory(fd, found) ? 1 : 0,
        };
        if (after == NULL || compare(&entry, &place) > 0) result = offer(page, &capacity, limit, &entry);
    }
    if (errno != 0) result = -1;
    int error = errno;
    closedir(directory);
    if (result < 0) {
        clinux_free_directory_page(page);
        errno = error;
        return -1;
    }
    // Sorted in its place: the last of the heap goes to the end, again and again.
    if (page->length < limit) make_heap(page->entries, page->length);
    for (size_t length = page->length; length > 1;) {
        swap(&page->entries[0], &page->entries[--length]);
        sink(page->entries, length, 0);
    }
    return 0;
}

void clinux_free_directory_page(struct clinux_directory_page *page)
{
    for (size_t index = 0; index < page->length; index++) free((char *)page->entries[index].name);
    free(page->entries);
    page->entries = NULL;
    page->length = 0;
}
