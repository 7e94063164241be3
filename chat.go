// chat.go carries messages between sessions: say, listen, who, wall and SITE SAY.
// It is apart from server.go, in whose sessions it works, because its question is
// another: that a message reaches everybody in the same order, and that nobody who
// is slow to hear holds up anybody who speaks.

package main

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"
	"unicode"

	"golang.org/x/time/rate"
)

const (
	chatKept = 100  // messages that SITE SAY can still show, and that a slow listener can be behind
	maxSaid  = 1000 // bytes of one message
	// A user says sayBurst messages at once and then one in sayEvery: more than
	// anybody types, and too few to bury anybody.
	sayEvery = 500 * time.Millisecond
	sayBurst = 20
)

// chat keeps the last messages for those who ask, and hands each to those who listen.
type chat struct {
	mu        mutex
	said      []message // oldest first, at most chatKept
	last      uint64
	listeners map[*listener]struct{}
}

type message struct {
	n    uint64
	at   time.Time
	from string
	text string
}

// A listener is a session that messages are sent to as they come. Its goroutine is
// there only while there is something to send.
type listener struct {
	s     *session
	queue []message // guarded by chat.mu, as all below
	lost  int       // messages that were dropped before the first of queue
	busy  bool
}

// messageFrame is the payload of M.
type messageFrame struct {
	From string `json:"from"`
	Text string `json:"text"`
	Time string `json:"time"`
	Lost int    `json:"lost,omitempty"`
}

// say tells everybody. Control characters are shown, not sent.
func (c *chat) say(from, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.keep(from, text)
	for l := range c.listeners {
		c.queue(l, m)
	}
}

// keep has SITE SAY show a message; c.mu is held.
func (c *chat) keep(from, text string) message {
	c.last++
	m := newMessage(c.last, from, text)
	c.said = append(c.said, m)
	if len(c.said) > chatKept {
		c.said = slices.Delete(c.said, 0, len(c.said)-chatKept)
	}
	return m
}

func newMessage(n uint64, from, text string) message {
	if len(text) > maxSaid {
		text = text[:maxSaid]
	}
	return message{n, time.Now(), from, strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))}
}

// queue gives l a message; c.mu is held.
func (c *chat) queue(l *listener, m message) {
	if l.queue = append(l.queue, m); len(l.queue) > chatKept {
		l.queue = slices.Delete(l.queue, 0, 1)
		l.lost++
	}
	if !l.busy {
		l.busy = true
		go c.deliver(l)
	}
}

// deliver sends what l has to hear until there is nothing left.
func (c *chat) deliver(l *listener) {
	defer l.s.guard(func() { l.s.kill(errControlGone) })
	for {
		c.mu.Lock()
		queue, lost := l.queue, l.lost
		l.queue, l.lost = nil, 0
		if len(queue) == 0 {
			l.busy = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		for i, m := range queue {
			f := messageFrame{From: m.from, Text: m.text, Time: m.at.UTC().Format(time.RFC3339Nano)}
			if i == 0 {
				f.Lost = lost
			}
			l.s.frame(frameMessage, encodeJSON(f)) // a session that cannot be sent to ends by itself
		}
		l.s.flush()
	}
}

// wall tells all of them, whether they listen or not, and who asks what was said.
func (c *chat) wall(all []*listener, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.keep("operator", text)
	for _, l := range all {
		c.queue(l, m)
	}
}

// listen begins, or ends, to send l what is said.
func (c *chat) listen(l *listener, on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !on {
		delete(c.listeners, l)
		return
	}
	if c.listeners == nil {
		c.listeners = map[*listener]struct{}{}
	}
	c.listeners[l] = struct{}{}
}

// since returns what was said after message n, and the last one's number.
func (c *chat) since(n uint64) (lines []string, last uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.said) > 0 && n > 0 && c.said[0].n > n+1 {
		lines = append(lines, fmt.Sprintf("(%d earlier messages are not kept)", c.said[0].n-n-1))
	}
	for _, m := range c.said {
		if m.n > n {
			lines = append(lines, m.at.UTC().Format("15:04:05 ")+m.from+": "+m.text)
		}
	}
	return lines, c.last
}

// --- front ends ---

const sayTooFast = "Not so fast; that was not said."

// say is say and SITE SAY: false if the user has said too much of late.
func (s *session) say(text string) bool {
	s.srv.mu.Lock()
	if s.account.saying == nil {
		s.account.saying = rate.NewLimiter(rate.Every(sayEvery), sayBurst)
	}
	ok := s.account.saying.Allow()
	s.srv.mu.Unlock()
	if ok {
		s.srv.chat.say(s.user.Name, text)
	}
	return ok
}

// siteSAY tells everybody, or, without text, what was said since it was last
// asked: over FTP nothing can be sent that no command asked for.
func (s *session) siteSAY(arg string) error {
	if len(arg) > maxSaid {
		s.reply(codeBadArgument, fmt.Sprintf("A message has at most %d bytes.", maxSaid))
		return nil
	}
	if arg != "" {
		if s.say(arg) {
			s.reply(codeOK, "Said.")
		} else {
			s.reply(codeBusy, sayTooFast)
		}
		return nil
	}
	lines, last := s.srv.chat.since(s.heard)
	s.heard = last
	s.replyLines(codeOK, "What was said:", lines, "End")
	return nil
}

// siteWHO lists the sessions.
func (s *session) siteWHO(string) error {
	var lines []string
	for _, w := range s.srv.who() {
		s.mayKnow(&w)
		line := fmt.Sprintf("%-16s %-6s since %s %s", w.User, w.Protocol, w.Since, w.Doing)
		if w.Address != "" {
			line += " from " + w.Address
		}
		lines = append(lines, line)
	}
	s.replyLines(codeStatus, "Sessions:", lines, "End")
	return nil
}

// whoEntry is one session that is logged in, as who tells it: a name there, once
// told, stays (docs/protocol.md).
type whoEntry struct {
	ID       uint64 `json:"id"`
	User     string `json:"user"`
	Protocol string `json:"protocol"`
	Since    string `json:"since"`
	Doing    string `json:"doing"` // verb, file and bytes in words
	Address  string `json:"address,omitempty"`
	Via      string `json:"via,omitempty"`     // the proxy that told the address
	Verb     string `json:"verb,omitempty"`    // that runs now
	File     string `json:"file,omitempty"`    // that it is about, as the user names it
	Command  string `json:"command,omitempty"` // that runs for him
	Bytes    int64  `json:"bytes"`             // that the verb has moved
	Size     int64  `json:"size,omitempty"`    // what Bytes will be at its end; 0: not known
	Rate     int64  `json:"rate"`              // bytes a second now, see transfer.speed
	Idle     int64  `json:"idle_seconds"`      // since the last verb was done; 0 while one runs
}

// who lists the sessions that are logged in, oldest first.
func (s *server) who() []whoEntry {
	var all []whoEntry
	now := time.Now()
	for _, c := range s.everySession() {
		c.mu.Lock()
		if c.user != nil {
			all = append(all, c.whoLocked(now))
		}
		c.mu.Unlock()
	}
	return all
}

// whoLocked is the session's line; s.mu is held.
func (s *session) whoLocked(now time.Time) whoEntry {
	e := whoEntry{ID: s.id, User: s.user.Name, Protocol: s.proto, Since: s.started.UTC().Format(time.RFC3339), Address: s.addrText(), Verb: s.verb}
	if s.via.IsValid() {
		e.Via = s.via.String()
	}
	switch x := s.xfer; {
	case x != nil:
		e.File, e.Command = x.file, x.command
		e.Bytes, e.Rate = x.speed(now)
		e.Size = x.total.Load()
		e.Doing = fmt.Sprintf("%s %d bytes", s.about, e.Bytes)
	case s.verb != "":
		e.Doing = s.verb
	default:
		e.Doing = "idle"
		since := s.restedAt
		if since.IsZero() {
			since = s.started
		}
		e.Idle = int64(now.Sub(since) / time.Second)
	}
	return e
}

// mayKnow takes out of e what this session may not know of another: where it comes
// from is the operator's, and what it works on its own user's too.
func (s *session) mayKnow(e *whoEntry) {
	if s.operator() {
		return
	}
	e.Address, e.Via = "", ""
	if e.User == s.user.Name {
		return
	}
	if e.File != "" || e.Command != "" {
		e.Doing = fmt.Sprintf("%s %d bytes", e.Verb, e.Bytes)
	}
	e.File, e.Command = "", ""
}

// everySession is all that there are now, oldest first.
func (s *server) everySession() []*session {
	s.mu.Lock()
	all := make([]*session, 0, len(s.sessions))
	for _, c := range s.sessions {
		all = append(all, c)
	}
	s.mu.Unlock()
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all
}

// hears is the session as a listener, made on first use; nil if it speaks lines,
// and can be told nothing that it did not ask for.
func (s *session) hears() *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.framed {
		return nil
	}
	if s.listener == nil {
		s.listener = &listener{s: s}
	}
	return s.listener
}

func (s *session) doSay(q *request) error {
	switch {
	case q.Text == "":
		return s.badField("say needs a text.")
	case len(q.Text) > maxSaid:
		return s.badField("A message has at most %d bytes.", maxSaid)
	case !s.say(q.Text):
		s.answer(&answer{Code: codeBusy, Reason: "rate", Text: sayTooFast})
	default:
		s.reply(codeOK, "Said.")
	}
	return nil
}

func (s *session) doListen(q *request) error {
	if q.Off {
		s.srv.chat.listen(s.hears(), false)
		s.reply(codeOK, "No messages from here on.")
		return nil
	}
	s.reply(codeOK, "Messages come as they are said.") // queued before the first of them
	s.srv.chat.listen(s.hears(), true)
	return nil
}

func (s *session) doWho(*request) error {
	return s.lines(func(w io.Writer) error {
		for _, e := range s.srv.who() {
			s.mayKnow(&e)
			if _, err := w.Write(append(encodeJSON(e), '\n')); err != nil {
				return err
			}
		}
		return nil
	})
}

// --- the operator's requests ---

func (s *session) doKick(q *request) error {
	if q.Session == 0 {
		return s.badField("kick needs a session, by the id that who tells.")
	}
	s.srv.mu.Lock()
	other := s.srv.sessions[q.Session]
	s.srv.mu.Unlock()
	if other == nil || other == s {
		s.answer(&answer{Code: codeDenied, Reason: "not_found", Text: fmt.Sprintf("There is no other session %d; who lists them.", q.Session)})
		return nil
	}
	other.mu.Lock()
	name := other.userName()
	other.mu.Unlock()
	s.srv.log.Info("kicked", "session", other.id, "user", name, "addr", other.addrText(), "by", s.id, "uid", s.localUID)
	other.kill(errKicked)
	s.reply(codeFileDone, "Ended.")
	return nil
}

func (s *session) doWall(q *request) error {
	if strings.TrimSpace(q.Text) == "" {
		return s.badField("wall needs a text.")
	}
	if len(q.Text) > maxSaid {
		return s.badField("A message has at most %d bytes.", maxSaid)
	}
	var told []*listener
	lines := 0
	for _, other := range s.srv.everySession() {
		other.mu.Lock()
		stranger := other.user == nil
		other.mu.Unlock()
		if stranger || other == s {
			continue
		}
		if l := other.hears(); l != nil {
			told = append(told, l)
		} else {
			lines++
		}
	}
	s.srv.chat.wall(told, q.Text)
	s.srv.log.Info("wall", "session", s.id, "uid", s.localUID, "bytes", len(q.Text), "count", len(told))
	s.reply(codeOK, fmt.Sprintf("Told %d %s at once. %d more in FTP, which has no words for it: SITE SAY shows it there.", len(told), plural(len(told), "session"), lines))
	return nil
}

// doMetrics tells what /metrics does, to who needs no password for it.
func (s *session) doMetrics(*request) error {
	return s.lines(func(w io.Writer) error { return s.srv.metrics.write(w) })
}

func (s *session) doReload(*request) error {
	if s.srv.drainAt.Load() != 0 {
		s.answer(&answer{Code: codeBusy, Reason: "busy", Text: "The daemon is going down, and reads nothing any more."})
		return nil
	}
	s.srv.log.Info("reload requested", "session", s.id, "uid", s.localUID)
	if err := s.srv.reload(); err != nil {
		s.answer(&answer{Code: codeLocalError, Reason: "configuration", Text: "The old configuration stays: " + err.Error()})
		return nil
	}
	s.reply(codeOK, "Reloaded.")
	return nil
}

func (s *session) doDrain(*request) error {
	if s.srv.drainOnce() { // a second signal would end it at once
		s.srv.log.Info("drain requested", "session", s.id, "uid", s.localUID)
		s.srv.signals <- syscall.SIGTERM
	}
	s.reply(codeOK, "Draining.")
	return nil
}
