// log.go is how the daemon's log leaves the program: to the journal with native
// fields, as text, or as JSON; and how much of it strangers may cause. It is apart
// from main.go because it is no part of the command line, and the question is
// another: nothing here knows what happened, only how it is written. Two promises
// hold in every format: one event is one line, whatever names clients chose, and no
// session waits long, or for ever, for whoever reads the log.
//
// The transfer log, which is a file of its own, is in xferlog.go.

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
	"golang.org/x/time/rate"
)

const (
	// journalSocket is where journald takes records with fields: systemd's "Native
	// Journal Protocol".
	journalSocket = "/run/systemd/journal/socket"

	// logPatience is how long a line may wait for whoever reads the log: a journal that is
	// full, a pipe's other end, a terminal that was stopped. After one that waited in vain,
	// none waits until one gets through.
	logPatience = 200 * time.Millisecond

	// logChunk is what one write to standard error has at most. A pipe that poll(2) calls
	// ready takes this much without waiting, and in one piece (PIPE_BUF, pipe(7)).
	logChunk = 4096

	// logDiskPatience is the same for a file: a memory card that is at work takes some
	// seconds now and then, and its lines should not be lost.
	logDiskPatience = 5 * time.Second

	// journalRetry is how often a journal that is not there is looked for.
	journalRetry = time.Second

	// journalBuffer is what sd_journal_send(3) asks for, too; larger records go by memfd.
	journalBuffer = 8 << 20

	// maxJournalValue bounds one field. The stacks of a panic are the longest there are.
	maxJournalValue = 64 << 10

	// logBurst is how many seconds' worth of log.rate may come at once: that much of a
	// sudden attack fail2ban sees whole.
	logBurst = 10

	// leftOutEvery is how often it is told how much was left out.
	leftOutEvery = 10 * time.Second
)

// journalIDs are the MESSAGE_IDs of main events: a line each, of the message, for
// transfers the direction, and the id. They are fixed: scripts and catalogs know them
// (docs/operations.md). It is text as a map takes four times the room in the program.
const journalIDs = `
login=cb5e1ff7f227479ab4afe9cc3db8215b
logout=329b6f70f0ae434da75f40d2ae262a73
login failed=f2d8ef10c5e64a67a8701c304a5a96d9
address banned=55ed4d65c4f54f68b22fce367350d3fd
refused=7659bba052cb45ebbcda56b7cb8cdf9e
transfer upload=661eb28cbfe740b8938c745483f68e51
transfer download=8df55ad52267422c8ac97b21e27cdd77
deleted=44dc6c822f40400fbc5d2449ca12d400
renamed=e9cacc352a654cfa90db7d344b88b636
directory removed=ae74630098d94208b81c81fb57f524b6
directory made=85582d495c1e4bb8b3b09db7b35680cd
command=aae41afb21d649069069e252510e6623
kicked=a56cf36dd7ae42f29f86a01c98cd840c
serving=13d5f557504140afaf828412ec7a4e95
stopped=29a8af8acd554a73ad65728a7bbdb9b8
reloaded=826ca56030024ef3b65162facb55c07e
reload refused, the old configuration stays=8514da31c0ee4aadbdfb3ba01237b302
left out=f0133b5527e345e19a6c62639151148a
`

// journalID is the MESSAGE_ID of an event, or "".
func journalID(event string) string {
	_, id, _ := strings.Cut(journalIDs, "\n"+event+"=")
	id, _, _ = strings.Cut(id, "\n")
	return id
}

// newLogger writes to w in the format of [log], and leaves out what strangers cause
// beyond log.rate. name is who the journal says it is.
func newLogger(name string, cfg logConfig, level *slog.LevelVar, w io.Writer) *slog.Logger {
	level.Set(logLevel(cfg.Level))
	return slog.New(newLimitHandler(formatHandler(name, cfg.Format, level, w), cfg.Rate))
}

// formatHandler chooses the format: "auto" is the journal where w leads to it, text
// on a terminal, else JSON.
func formatHandler(name, format string, level slog.Leveler, w io.Writer) slog.Handler {
	f, isFile := w.(*os.File)
	if isFile {
		o := &logFile{f: f}
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			o.disk = logDiskPatience
		}
		w = o
	}
	if format == "auto" {
		switch {
		case isFile && leadsToJournal(f):
			format = "journal"
		case isFile && term.IsTerminal(int(f.Fd())):
			format = "text"
		default:
			format = "json"
		}
	}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr { return cleanAttr(a, textSafe) }}
	switch format {
	case "journal":
		socket := ""
		if isFile { // what a test or a pipe is given gets all there is
			socket = journalSocket
		}
		return newJournalHandler(name, w, level, socket)
	case "text":
		return slog.NewTextHandler(w, opts)
	}
	opts.ReplaceAttr = func(_ []string, a slog.Attr) slog.Attr {
		if a.Value.Kind() == slog.KindDuration { // seconds, as everywhere in the metrics
			a.Value = slog.Float64Value(a.Value.Duration().Seconds())
		}
		return cleanAttr(a, jsonSafe)
	}
	return slog.NewJSONHandler(w, opts)
}

// cleanAttr is the attribute with its text made safe for a format.
func cleanAttr(a slog.Attr, safe func(string) string) slog.Attr {
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(safe(a.Value.String()))
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			a.Value = slog.StringValue(safe(err.Error()))
		}
	}
	return a
}

// jsonSafe takes out the control characters that JSON lets through as they are: some
// readers break lines at U+0085, terminals obey U+009B, and what turns the direction of
// writing has a line show another name than it holds.
func jsonSafe(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 0x7f && r <= 0x9f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return utf8.RuneError
		}
		return r
	}, s)
}

// textSafe is jsonSafe for text, where slog quotes and escapes all of that but DEL.
func textSafe(s string) string { return strings.ReplaceAll(s, "\x7f", "\uFFFD") }

// leadsToJournal tells whether f is the stream to the journal that systemd gave this
// process: JOURNAL_STREAM is inherited by programs whose output goes elsewhere
// (systemd.exec(5)).
func leadsToJournal(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

func logLevel(name string) slog.Level {
	var l slog.Level
	if l.UnmarshalText([]byte(name)) != nil {
		return slog.LevelInfo
	}
	return l
}

// --- the journal ---

// journalHandler sends records to the journal. MESSAGE is the line that the text format
// has, without time and level, which the journal knows by itself. Where the journal
// cannot be had it prints that line with the priority prefix of sd-daemon(3).
type journalHandler struct {
	level  slog.Leveler
	out    *journalOut
	text   slog.Handler // renders into out.line
	fields []byte       // of With
	prefix string       // of WithGroup
}

func newJournalHandler(name string, w io.Writer, level slog.Leveler, socket string) *journalHandler {
	out := &journalOut{name: name, socket: socket, fd: -1, w: w}
	opts := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return cleanAttr(a, textSafe)
	}}
	return &journalHandler{level: level, out: out, text: slog.NewTextHandler(&out.line, opts)}
}

func (h *journalHandler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

// journalPriority is the level as syslog(3) has it.
func journalPriority(l slog.Level) byte {
	switch {
	case l < slog.LevelInfo:
		return '7'
	case l < slog.LevelWarn:
		return '6'
	case l < slog.LevelError:
		return '4'
	}
	return '3'
}

func (h *journalHandler) Handle(ctx context.Context, r slog.Record) error {
	priority := journalPriority(r.Level)
	fields := append(h.out.head(priority), h.fields...)
	id := r.Message
	r.Attrs(func(a slog.Attr) bool {
		fields = h.appendAttr(fields, a)
		if a.Key == "direction" {
			id += " " + a.Value.String()
		}
		return true
	})
	if id = journalID(id); id != "" {
		fields = appendJournalField(fields, "MESSAGE_ID", id)
	}
	o := h.out
	o.mu.Lock()
	o.line.Reset()
	err := h.text.Handle(ctx, r)
	line := bytes.Clone(o.line.Bytes())
	o.mu.Unlock()
	if err != nil {
		return err
	}
	if o.send(appendJournalField(fields, "MESSAGE", string(line[:len(line)-1]))) {
		return nil
	}
	o.printing.Lock()
	defer o.printing.Unlock()
	_, err = o.w.Write(append([]byte{'<', priority, '>'}, line...))
	return err
}

func (h *journalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	n := *h
	n.text = h.text.WithAttrs(attrs)
	n.fields = bytes.Clone(h.fields)
	for _, a := range attrs {
		n.fields = h.appendAttr(n.fields, a)
	}
	return &n
}

func (h *journalHandler) WithGroup(name string) slog.Handler {
	n := *h
	n.text = h.text.WithGroup(name)
	n.prefix += name + "_"
	return &n
}

// appendAttr adds the field of one attribute: BERTH_ and its key in capitals. Keys are
// written in this program, so there are as many as docs/operations.md lists.
func (h *journalHandler) appendAttr(b []byte, a slog.Attr) []byte {
	key := a.Key
	if key == "dur" {
		key = "duration" // nobody would guess the short word
	}
	value := ""
	switch v := a.Value.Resolve(); v.Kind() {
	case slog.KindGroup:
		return b // MESSAGE has it
	case slog.KindDuration:
		value = strconv.FormatFloat(v.Duration().Seconds(), 'f', -1, 64)
	case slog.KindTime:
		value = v.Time().UTC().Format(time.RFC3339Nano)
	default:
		value = v.String() // fmt.Sprint, where it is none of slog's own kinds
	}
	return appendJournalField(b, "BERTH_"+strings.ToUpper(h.prefix+key), value)
}

// appendJournalField adds a field in the journal's own format. A value with a line end
// has its length before it, so no value can begin another field.
//
// Not inlined, as usageErr.
//
//go:noinline
func appendJournalField(b []byte, name, value string) []byte {
	value = value[:min(len(value), maxJournalValue)]
	b = append(b, name...)
	if strings.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = binary.LittleEndian.AppendUint64(append(b, '\n'), uint64(len(value)))
	}
	return append(append(b, value...), '\n')
}

// journalOut is the way out of all journal handlers of one logger. Its socket is kept
// until the process ends.
type journalOut struct {
	name   string      // SYSLOG_IDENTIFIER
	socket string      // "": only w
	w      io.Writer   // where lines go that the journal does not take
	full   atomic.Bool // the last record waited in vain

	mu    mutex // guards what follows; never held while anything waits
	line  bytes.Buffer
	fd    int  // -1: none yet
	ready bool // it is connected
	next  time.Time

	printing mutex // held while w is written to
}

// head begins a record.
//
//go:noinline
func (o *journalOut) head(priority byte) []byte {
	return appendJournalField(appendJournalField(make([]byte, 0, 1<<10), "SYSLOG_IDENTIFIER", o.name), "PRIORITY", string(rune(priority)))
}

// send is false if the journal does not take the record: it is not there, or still full
// after logPatience.
func (o *journalOut) send(record []byte) bool {
	var end time.Time
	for tries := 0; tries < 2; {
		fd := o.connected()
		if fd < 0 {
			return false
		}
		switch err := sendJournal(fd, record); err {
		case nil:
			o.full.Store(false)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			now := time.Now()
			if end.IsZero() {
				end = now.Add(logPatience)
			}
			if o.full.Load() || !now.Before(end) {
				o.full.Store(true)
				return false
			}
			// On a connected socket poll knows when the other end has room.
			unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, int(end.Sub(now).Milliseconds())+1)
		default: // once more: there may be another journald now
			tries++
			o.mu.Lock()
			o.ready = false
			o.mu.Unlock()
		}
	}
	return false
}

// connected is the socket if it leads to the journal, or -1.
func (o *journalOut) connected() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	if o.socket == "" || !o.ready && now.Before(o.next) {
		return -1
	}
	if o.fd < 0 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, journalBuffer) // as much of it as net.core.wmem_max lets it be
		o.fd = fd
	}
	if !o.ready && unix.Connect(o.fd, &unix.SockaddrUnix{Name: o.socket}) != nil {
		o.next = now.Add(journalRetry)
		return -1
	}
	o.ready = true
	return o.fd
}

// sendJournal sends a record; a large one as a sealed memfd, which journald takes
// without copying.
func sendJournal(fd int, record []byte) error {
	err := unix.Sendmsg(fd, record, nil, nil, unix.MSG_NOSIGNAL)
	if err != unix.EMSGSIZE && err != unix.ENOBUFS {
		return err
	}
	mem, err := unix.MemfdCreate("berth-log", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	defer unix.Close(mem)
	if _, err := unix.Write(mem, record); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(mem), unix.F_ADD_SEALS, seals); err != nil {
		return err
	}
	return unix.Sendmsg(fd, nil, unix.UnixRights(mem), nil, unix.MSG_NOSIGNAL)
}

// --- standard error ---

// A logFile is the descriptor that the log goes to. Whoever reads it may stand still, as a
// pipe's other end does, or a terminal, and a session must not stand still with him. It is
// written to by system calls of its own: when nobody reads descriptor 2 any more, os.File
// ends the program (os/signal, "SIGPIPE"), and a daemon has better to do.
//
// A disk that stands still is worse: poll(2) calls its files ready, and the write waits for
// ever. So a line for a file is written by a goroutine that can be left behind; as long as
// that has not ended, there is no other.
//
// Handlers hold a lock of theirs while they write.
type logFile struct {
	f    *os.File
	disk time.Duration // how long a line may take to it; 0: it is no file
	turn mutex         // of the goroutine, who has what follows
	full bool          // the last line waited in vain
	torn bool          // the last line has no end
}

func (o *logFile) Write(line []byte) (int, error) {
	if o.disk == 0 {
		return o.write(line)
	}
	if !o.turn.TryLock() {
		return 0, unix.EAGAIN
	}
	line = bytes.Clone(line)
	var err error
	if !within(o.disk, func() {
		_, err = o.write(line)
		o.turn.Unlock()
	}) {
		return len(line), nil // it is on its way
	}
	return len(line), err
}

// within runs fn on a goroutine that is left behind if it has not ended after d.
func within(d time.Duration, fn func()) bool {
	done := make(chan struct{})
	go func() {
		fn()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
	}
	select {
	case <-done: // both at once
		return true
	default:
		return false
	}
}

// write writes lines to what takes them at once, or not at all.
func (o *logFile) write(line []byte) (int, error) {
	all := len(line)
	if o.torn {
		line = append([]byte{'\n'}, line...)
	}
	end := time.Now().Add(logPatience)
	for len(line) > 0 {
		fd, wait := int(o.f.Fd()), 0
		if !o.full {
			wait = int(max(0, time.Until(end)).Milliseconds())
		}
		switch ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, wait); {
		case err == unix.EINTR:
			continue
		case err == nil && ready == 0:
			o.full = true
			return 0, unix.EAGAIN
		}
		n, err := unix.Write(fd, line[:min(len(line), logChunk)])
		switch {
		case n > 0:
			line, o.torn = line[n:], true
		case err == unix.EINTR, err == unix.EAGAIN && !o.full && time.Now().Before(end):
		default:
			o.full = err == unix.EAGAIN
			return 0, err
		}
	}
	o.full, o.torn = false, false
	return all, nil
}

// --- what strangers may cause ---

// limitedKindOf is the kind of a line that somebody can cause at will and without a trace
// of work done: strangers, and each user by what he is refused. "" is a line that is never
// left out: those of what users did and transferred, and of what the daemon does by itself.
func limitedKindOf(r *slog.Record) string {
	switch r.Message {
	case "login failed", "address banned", "address not banned", "foreign data connection", "http request",
		"session ended", "cannot accept connections", "datagram read", "datagram panic", "panic in the http service":
		return r.Message
	case "refused", "session panic":
	default:
		return ""
	}
	kind, user := r.Message, ""
	r.Attrs(func(a slog.Attr) bool {
		switch {
		case a.Key == "user":
			user = a.Value.String()
		case a.Key == "result" && a.Value.String() == clearText:
			user = "" // he has only said who he is
		case a.Key == "verb" && a.Value.String() == "AUTH":
			kind = "TLS handshake"
		}
		return true
	})
	switch {
	case user == "":
		return kind
	case r.Message == "refused": // tens of thousands a second would fill the disk, or have journald drop others' lines
		return kind + " " + user
	}
	return ""
}

// A logLimit is what all handlers of one logger share. It has no goroutine: a timer
// runs while something was left out that nobody was told of.
type logLimit struct {
	mu      mutex // guards what follows; never held while a line is written
	rate    int
	kinds   map[string]*limitedKind // as many as limitedKindOf knows, with one for each user
	telling *time.Timer             // nil: nothing to tell
	counted func(n int)             // for the metrics; may be nil

	tells slog.Handler // gets lines about lines; fixed before there are any
	lost  atomic.Int64 // lines that could not be written, and nobody was told
}

type limitedKind struct {
	bucket  *rate.Limiter
	leftOut int
}

// limitHandler is the outermost of a logger's handlers.
type limitHandler struct {
	slog.Handler
	limit *logLimit
}

func newLimitHandler(next slog.Handler, perSecond int) *limitHandler {
	return &limitHandler{next, &logLimit{rate: perSecond, kinds: map[string]*limitedKind{}, tells: next}}
}

func (h *limitHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limitHandler{h.Handler.WithAttrs(attrs), h.limit}
}

func (h *limitHandler) WithGroup(name string) slog.Handler {
	return &limitHandler{h.Handler.WithGroup(name), h.limit}
}

func (h *limitHandler) Handle(ctx context.Context, r slog.Record) error {
	if kind := limitedKindOf(&r); kind != "" && !h.allow(kind) {
		return nil
	}
	l := h.limit
	err := h.Handler.Handle(ctx, r)
	if err != nil {
		l.lost.Add(1)
	} else if n := l.lost.Swap(0); n > 0 {
		told := slog.NewRecord(time.Now(), slog.LevelWarn, "log lines lost", 0)
		told.AddAttrs(slog.Int64("count", n))
		if l.tells.Handle(ctx, told) != nil {
			l.lost.Add(n) // and what was to tell of them is one more, if it came by here
		}
	}
	return err
}

// allow takes a line of this kind from its bucket, or counts it as left out.
func (h *limitHandler) allow(kind string) bool {
	l := h.limit
	l.mu.Lock()
	if l.rate == 0 {
		l.mu.Unlock()
		return true
	}
	k := l.kinds[kind]
	if k == nil {
		k = &limitedKind{bucket: rate.NewLimiter(rate.Limit(l.rate), l.rate*logBurst)}
		l.kinds[kind] = k
	}
	if k.bucket.Allow() {
		l.mu.Unlock()
		return true
	}
	k.leftOut++
	if l.telling == nil {
		l.telling = time.AfterFunc(leftOutEvery, h.tell)
	}
	counted := l.counted
	l.mu.Unlock()
	if counted != nil {
		counted(1)
	}
	return false
}

// tell writes how much of each kind was left out since it was last told; also at the
// daemon's end.
func (h *limitHandler) tell() {
	if h == nil {
		return
	}
	l := h.limit
	l.mu.Lock()
	if l.telling != nil {
		l.telling.Stop()
		l.telling = nil // the next that is left out begins another
	}
	counts := map[string]int{}
	for kind, k := range l.kinds {
		if k.leftOut > 0 {
			counts[kind], k.leftOut = k.leftOut, 0
		}
	}
	l.mu.Unlock()
	log := slog.New(l.tells)
	for kind, n := range counts {
		log.Warn("left out", "of", kind, "count", n)
	}
}

// limitOf is the limit of a logger, or nil if it has none: that of a test.
func limitOf(log *slog.Logger) *limitHandler {
	h, _ := log.Handler().(*limitHandler)
	return h
}

// through has lines about lines that were left out or lost take the way of all others,
// which begins with next. It is for the start, before there are any.
func (h *limitHandler) through(next slog.Handler) {
	if h != nil {
		h.limit.tells = next
	}
}

// count has counted be told of each line that is left out.
func (h *limitHandler) count(counted func(n int)) {
	if h != nil {
		h.limit.mu.Lock()
		defer h.limit.mu.Unlock()
		h.limit.counted = counted
	}
}

// setRate takes log.rate from a reloaded configuration.
func (h *limitHandler) setRate(perSecond int) {
	if h == nil {
		return
	}
	h.limit.mu.Lock()
	defer h.limit.mu.Unlock()
	if h.limit.rate == perSecond {
		return
	}
	h.limit.rate = perSecond
	for _, k := range h.limit.kinds {
		k.bucket = rate.NewLimiter(rate.Limit(perSecond), perSecond*logBurst)
	}
}
