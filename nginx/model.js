// Counts the tokens of the model's answers while they pass, for the log. The answers are never held up or changed.
//
// What an answer took is told at its end only. Whoever breaks it off before that has got what came until then, which is
// estimated by its length.
//
// Each request has variables of its own here. njs frees what it allocates at the end of a request, so the pieces of
// a stream that can't hold a count are not looked into: a stream of 130,000 events takes some 90 MB while it lasts,
// an ordinary one less than 5.

const longestLine = 65536;
const largestAnswer = 4194304;
const names = {
    input_tokens: 'claude_model_input',
    cache_read_input_tokens: 'claude_model_cache_read',
    cache_creation_input_tokens: 'claude_model_cache_creation',
};
// What costs more than it looks, in objects of its own.
const innerNames = [
    ['cache_creation', 'ephemeral_1h_input_tokens', 'claude_model_cache_creation_1h'],
    ['server_tool_use', 'web_search_requests', 'claude_model_web_searches'],
];

// Pieces of what is not yet a whole line of a stream, or not yet the whole of another answer, and their length.
let pieces = [];
let length = 0;
let isSkipping = false;
let kind = null;
// The last count that was told, and whether it is that of the whole answer.
let outputTokens = 0;
let isTold = false;
// What has passed of the answer's texts.
let outputBytes = 0;
// Bytes for a token: few enough for code and for most languages.
const bytesOfToken = 3;

function kindOf(r) {
    if (r.status !== 200) {
        return 'other';
    }
    const type = r.headersOut['Content-Type'] || '';
    return type.startsWith('text/event-stream') ? 'stream' : type.startsWith('application/json') ? 'answer' : 'other';
}

function note(r, usage, model) {
    if (typeof model === 'string') {
        r.variables.claude_model_name = model.slice(0, 200);
    }
    if (usage === null || typeof usage !== 'object') {
        return;
    }
    // The counts of a stream are totals, of which the last one holds.
    Object.keys(names).forEach((name) => noteCount(r, usage[name], names[name]));
    if (isCount(usage.output_tokens)) {
        outputTokens = usage.output_tokens;
    }
    innerNames.forEach((name) => {
        const inner = usage[name[0]];
        if (inner !== null && typeof inner === 'object') {
            noteCount(r, inner[name[1]], name[2]);
        }
    });
}

function isCount(value) {
    return typeof value === 'number' && value >= 0 && Number.isInteger(value);
}

function noteCount(r, count, variable) {
    if (isCount(count)) {
        r.variables[variable] = String(count);
    }
}

// Adds the lengths of the texts in events of a stream, or in the lines of one: from the colon after the text's name to
// the end of the line, less what closes the JSON. Nothing is copied. What is escaped counts as it is written.
function addTexts(data, newline) {
    let at = data.indexOf('"content_block_delta"');
    while (at >= 0) {
        // A quotation mark inside of a text is escaped, so this is the type of what has come.
        const type = data.indexOf('_delta"', at + 21);
        const end = type < 0 ? -1 : data.indexOf(newline, type);
        const text = end < 0 ? -1 : data.indexOf(':', type);
        if (text >= 0 && text < end) {
            outputBytes += Math.max(0, end - text - 5);
        }
        at = end < 0 ? -1 : data.indexOf('"content_block_delta"', end);
    }
}

// The variable of the log.
function output() {
    return String(isTold ? outputTokens : Math.max(outputTokens, Math.ceil(outputBytes / bytesOfToken)));
}

function parse(r, text) {
    try {
        return JSON.parse(text);
    } catch (e) {
        r.warn('an answer of the model could not be read for its tokens');
        return {};
    }
}

function noteLine(r, line) {
    addTexts(line + '\n', '\n');
    if (!line.startsWith('data:') || line.indexOf('"usage"') < 0) {
        return;
    }
    const event = parse(r, line.slice(5));
    if (event.type === 'message_start' && event.message) {
        note(r, event.message.usage, event.message.model);
    } else if (event.type === 'message_delta') {
        note(r, event.usage);
        isTold = true;
    }
}

// Keeps a piece, or gives what it is part of up if that is too long.
function keep(piece, limit) {
    if (isSkipping || piece.length === 0) {
        return;
    }
    pieces.push(piece);
    length += piece.length;
    if (length > limit) {
        pieces = [];
        length = 0;
        isSkipping = true;
    }
}

function take() {
    const text = pieces.join('');
    pieces = [];
    length = 0;
    return text;
}

function countStream(r, data) {
    if (data.length === 0) {
        return;
    }
    const isWhole = length === 0 && !isSkipping && data[data.length - 1] === 10;
    // A quotation mark inside of a text is escaped, so a text that speaks of "usage" is none.
    if (isWhole && data.indexOf('"usage"') < 0) {
        addTexts(data, 10);
        return;
    }
    const lines = data.toString().split('\n');
    const last = lines.pop();
    lines.forEach((line) => {
        keep(line, longestLine);
        if (!isSkipping) {
            noteLine(r, take());
        }
        isSkipping = false;
    });
    keep(last, longestLine);
}

function countAnswer(r, data, flags) {
    keep(data.toString(), largestAnswer);
    if (!flags.last) {
        return;
    }
    if (isSkipping) {
        r.warn('an answer of the model was too large to be read for its tokens');
    } else if (length > 0) {
        const answer = parse(r, take());
        note(r, answer.usage, answer.model);
        isTold = true;
    }
}

function count(r, data, flags) {
    r.sendBuffer(data, flags);
    if (kind === null) {
        kind = kindOf(r);
    }
    if (kind === 'stream') {
        countStream(r, data);
    } else if (kind === 'answer') {
        countAnswer(r, data, flags);
    }
}

export default { count, output };
