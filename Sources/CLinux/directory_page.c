#define _GNU_SOURCE
#include "directory_page.h"
#include "entries.h"

#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/vfs.h>
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

// The entries of a directory from one place on, in the order of its file system, and before another one.
struct part {
    DIR *directory;
    long start;
    // NO_END if it is the last.
    long end;
    const struct clinux_directory_entry *after;
    size_t limit;
    struct clinux_directory_page page;
    // 0, or why the page is not there.
    int error;
};

static const long NO_END = LONG_MAX;

// Reads a part and closes its stream. Returns NULL, as the main function of a thread.
static void *read_part(void *argument)
{
    struct part *part = argument;
    struct clinux_directory_page *page = &part->page;
    *page = (struct clinux_directory_page){.is_complete = 1};
    size_t capacity = 0;
    int result = 0, fd = dirfd(part->directory);
    struct dirent *found;
    for (long place = part->start; result == 0 && (part->end == NO_END || place < part->end);
         place = found->d_off) {
        errno = 0;
        found = readdir(part->directory);
        if (found == NULL) {
            if (errno != 0) result = -1;
            break;
        }
        if (is_dot(found->d_name)) continue;
        page->count++;
        size_t length = strlen(found->d_name);
        struct clinux_directory_entry entry = {
            .head = head_of(found->d_name, length),
            .length = length,
            .name = found->d_name,
            .is_directory = is_directory(fd, found) ? 1 : 0,
        };
        if (part->after == NULL || compare(&entry, part->after) > 0) result = offer(page, &capacity, part->limit, &entry);
    }
    part->error = result < 0 ? errno : 0;
    closedir(part->directory);
    if (result < 0) {
        clinux_free_directory_page(page);
        return NULL;
    }
    // Sorted in its place: the last of the heap goes to the end, again and again.
    if (page->length < part->limit) make_heap(page->entries, page->length);
    for (size_t length = page->length; length > 1;) {
        swap(&page->entries[0], &page->entries[--length]);
        sink(page->entries, length, 0);
    }
    return NULL;
}

// Makes one page of two, and frees the second one.
static int merge(struct clinux_directory_page *page, struct clinux_directory_page *other, size_t limit)
{
    size_t length = page->length + other->length;
    if (length > limit) length = limit;
    struct clinux_directory_entry *entries = reallocarray(NULL, length + 1, sizeof *entries);
    if (entries == NULL) return -1;
    size_t own = 0, others = 0;
    for (size_t index = 0; index < length; index++) {
        int is_own = others == other->length
            || (own < page->length && compare(&page->entries[own], &other->entries[others]) < 0);
        entries[index] = is_own ? page->entries[own++] : other->entries[others++];
    }
    if (own < page->length || others < other->length || !other->is_complete) page->is_complete = 0;
    while (own < page->length) free((char *)page->entries[own++].name);
    while (others < other->length) free((char *)other->entries[others++].name);
    free(other->entries);
    free(page->entries);
    page->entries = entries;
    page->length = length;
    page->count += other->count;
    return 0;
}

// A stream of the second half of a directory that is so large that another thread should read it, else NULL.
//
// ext4 has the entries of an indexed directory in the order of 31 bits of a hash of their names, which are the high half
// of their places; to a directory without an index there is no such place. Nearly all the time that a page takes goes by
// in the kernel, which makes this order for the reader.
static DIR *second_half(int fd, long *middle)
{
    enum { LARGE = 1 << 20 };
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) < 0 || status.st_size < LARGE || fstatfs(fd, &system) < 0
        || system.f_type != EXT4_SUPER_MAGIC)
        return NULL;
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (again < 0) return NULL;
    *middle = 1L << 62;
    if (lseek(again, *middle, SEEK_SET) == *middle) return stream_of(again);
    close(again);
    return NULL;
}

int clinux_read_directory_page(
    int fd, const struct clinux_directory_entry *after, size_t limit, struct clinux_directory_page *page)
{
    *page = (struct clinux_directory_page){.is_complete = 1};
    struct clinux_directory_entry place;
    if (after != NULL) {
        place = *after;
        place.head = head_of(place.name, place.length);
        after = &place;
    }
    struct part first = {.end = NO_END, .after = after, .limit = limit};
    first.directory = stream_of_directory(fd);
    if (first.directory == NULL) return -1;
    struct part second = {.end = NO_END, .after = after, .limit = limit};
    second.directory = second_half(fd, &second.start);
    pthread_t thread;
    int is_split = second.directory != NULL && pthread_create(&thread, NULL, read_part, &second) == 0;
    if (is_split) first.end = second.start;
    if (!is_split && second.directory != NULL) closedir(second.directory);
    read_part(&first);
    if (is_split) pthread_join(thread, NULL);
    int error = first.error;
    if (is_split && error == 0) error = second.error;
    if (is_split && error == 0 && merge(&first.page, &second.page, limit) < 0) error = errno;
    if (error != 0) {
        if (first.error == 0) clinux_free_directory_page(&first.page);
        if (is_split && second.error == 0) clinux_free_directory_page(&second.page);
        errno = error;
        return -1;
    }
    *page = first.page;
    return 0;
}

void clinux_free_directory_page(struct clinux_directory_page *page)
{
    for (size_t index = 0; index < page->length; index++) free((char *)page->entries[index].name);
    free(page->entries);
    page->entries = NULL;
    page->length = 0;
}
