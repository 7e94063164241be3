package main

// recent.go keeps the last warnings and errors of the log for the status page. It
// is a log handler in front of whatever writes the log, and apart from those as it
// writes nothing: what is here is gone with the process. It knows no format and no
// rate.

import (
	"context"
	"log/slog"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	recentKept = 20  // different messages
	recentText = 300 // bytes of what each was about
)

// A recentEvent is a message that was logged at least once. Only the last time is
// kept: whoever makes a thousand logins fail pushes out nothing else. Its JSON is in
// docs/protocol.md.
type recentEvent struct {
	Time    string `json:"time"`
	Level   string `json:"level"` // warn or error
	Message string `json:"message"`
	Detail  string `json:"detail,omitempty"` // the attributes of the last time
	Count   uint64 `json:"count"`

	at time.Time
}

// recentEvents are the last of each message.
type recentEvents struct {
	mu  mutex
	all []*recentEvent // at most recentKept, in no order
}

// A recentLog passes everything on, and notes warnings and errors.
type recentLog struct {
	slog.Handler
	events *recentEvents
	with   string // the attributes of all its records
}

func newRecentLog(h slog.Handler) *recentLog { return &recentLog{h, &recentEvents{}, ""} }

func (h *recentLog) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelWarn {
		detail := h.with
		r.Attrs(func(a slog.Attr) bool {
			detail = recentAttr(detail, a)
			return len(detail) < recentText
		})
		h.events.add(&recentEvent{jsonTime(r.Time), strings.ToLower(r.Level.String()), r.Message, detail, 1, r.Time})
	}
	return h.Handler.Handle(ctx, r)
}

func (h *recentLog) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := h.with
	for _, a := range attrs {
		with = recentAttr(with, a)
	}
	return &recentLog{h.Handler.WithAttrs(attrs), h.events, with}
}

func (h *recentLog) WithGroup(name string) slog.Handler {
	return &recentLog{h.Handler.WithGroup(name), h.events, h.with}
}

// recentAttr appends key=value to text, as slog's own text has it, cut to a length.
func recentAttr(text string, a slog.Attr) string {
	if a.Key == "stack" { // of a bug: the log has it
		return text
	}
	v := a.Value.Resolve().String()
	v = v[:min(len(v), recentText)]
	if v == "" || strings.ContainsFunc(v, func(r rune) bool { return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) }) {
		v = strconv.Quote(v)
	}
	text = strings.TrimPrefix(text+" "+a.Key+"="+v, " ")
	if len(text) > recentText {
		text = text[:recentText-3] + "..."
	}
	return text
}

func (e *recentEvents) add(n *recentEvent) {
	e.mu.Lock()
	defer e.mu.Unlock()
	oldest := 0
	for i, o := range e.all {
		if o.Message == n.Message && o.Level == n.Level {
			n.Count += o.Count
			e.all[i] = n
			return
		}
		if o.at.Before(e.all[oldest].at) {
			oldest = i
		}
	}
	if len(e.all) < recentKept {
		e.all = append(e.all, n)
		return
	}
	e.all[oldest] = n
}

// list is what happened, the latest first.
func (e *recentEvents) list() []recentEvent {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := make([]recentEvent, 0, len(e.all))
	for _, n := range e.all {
		all = append(all, *n)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].at.After(all[j].at) })
	return all
}
