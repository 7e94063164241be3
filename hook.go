// hook.go is on_upload: the queue of uploads whose command has yet to succeed,
// which outlives the daemon. It is apart from exec.go, which runs the commands,
// because what it promises is about crashes, order and patience.
//
// What a client chose reaches a command through its environment only, and as
// bytes: nothing here puts a name into an argument or a line of text.

package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// hookQueueMax bounds the events that wait for on_upload: at one picture a
	// second nearly three hours, and some 10 MiB of memory and 40 MiB of disk.
	hookQueueMax = 10_000

	// hookUserMax is one user's part of it, so that one broken command cannot have
	// everybody's uploads refused.
	hookUserMax = hookQueueMax / 2

	// hookWorkers is how many events are worked on at once. The smallest boxes have
	// one core, and a second worker keeps a slow command from holding up others.
	hookWorkers = 2

	// hookOutputMax is how much of the end of a command's output goes to the log
	// with a failure: the last words of a program say why.
	hookOutputMax = 2 << 10

	// hookRecordMax bounds an event on the disk: three paths of PATH_MAX, each byte
	// written as six characters at worst, and the small fields.
	hookRecordMax = 128 << 10

	hookRecordVersion = 1
	hookSuffix        = ".json"
	hookNewPrefix     = "new-"     // being written: not acknowledged yet
	hookCorruptPrefix = "corrupt-" // set aside for a person to look at
)

// hookBackoff is how long after each failure the next try comes; one more
// failure than there are waits, and the event is given up.
var hookBackoff = [...]time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute}

// hookTries is how often an event is tried in all.
const hookTries = len(hookBackoff) + 1

// An uploadEvent is one completed upload for which the user's on_upload runs.
// Names are bytes as the client sent them; none has a NUL.
type uploadEvent struct {
	User     string    `json:"user"`
	Command  string    `json:"command"` // NAME of [commands.NAME]
	Path     string    `json:"path"`    // as the client names it, from "/" on
	File     string    `json:"file"`    // where it is, absolute
	Dir      string    `json:"dir"`     // the home: working directory and HOME
	Size     int64     `json:"size"`
	SHA256   string    `json:"sha256"`  // lower-case hex; "": not known
	Address  string    `json:"address"` // the client's; "": none, as on the local socket
	Protocol string    `json:"protocol"`
	Time     time.Time `json:"time"`
	Session  uint64    `json:"session"`
}

// environment is all that the command gets to know.
func (ev *uploadEvent) environment() []string {
	return []string{
		"PATH=" + programPath,
		"HOME=" + ev.Dir,
		"LANG=C.UTF-8",
		"BERTH_USER=" + ev.User,
		"BERTH_PATH=" + ev.Path,
		"BERTH_FILE=" + ev.File,
		"BERTH_SIZE=" + strconv.FormatInt(ev.Size, 10),
		"BERTH_SHA256=" + ev.SHA256,
		"BERTH_ADDRESS=" + ev.Address,
		"BERTH_PROTOCOL=" + ev.Protocol,
		"BERTH_TIME=" + ev.Time.UTC().Format(time.RFC3339Nano),
		"BERTH_SESSION=" + strconv.FormatUint(ev.Session, 10),
	}
}

// onUploadProblem is what keeps the command from being anybody's on_upload under
// cfg, and the way out; "" if nothing does.
func onUploadProblem(cfg *config, name string) string {
	cmd, ok := cfg.Commands[name]
	if !ok {
		return fmt.Sprintf("there is no command %s; define it as [commands.NAME] in the configuration", configQuote(name))
	}
	for _, arg := range cmd.Run {
		if hole := commandPlaceholder.FindString(arg); hole != "" {
			return fmt.Sprintf("command %s has %s, which only a client can fill in; name a command without placeholders, "+
				"which finds the upload in BERTH_FILE", configQuote(name), hole)
		}
	}
	return ""
}

// What becomes of an event whose command never succeeded: reasons for hookSinks.lost.
const (
	hookLostFull      = "queue_full" // the queue or the user's part of it
	hookLostNotStored = "not_stored" // the state directory could not be written
	hookLostGivenUp   = "given_up"   // it failed hookTries times
	hookLostNoCommand = "no_command" // the configuration has none that can be run
	hookLostFileGone  = "file_gone"  // it failed, and there is no file to try it on again
	hookLostCorrupt   = "corrupt"    // its record was damaged on the disk
)

// What became of one try: results for hookSinks.ran, beside programEnd's words
// timeout, output_limit and start_failed.
const (
	hookRanOK      = "ok"
	hookRanFailed  = "failed"  // exit status above 0, or a signal
	hookRanStopped = "stopped" // the daemon was; it does not count as a try
)

// hookSinks is what a queue has of the server: what runs its commands, and where it
// reports to. All are called from its own goroutines and from those that add.
type hookSinks struct {
	// launch runs a command: (*launcher).run.
	launch func(context.Context, program, programIO) programResult
	// sandbox is what a command may reach for this user; nil: it has no sandbox.
	sandbox func(user, command string) *sandbox
	// ran counts one try of a command that the configuration has, by its result.
	ran func(command, result string, took time.Duration)
	// after is told that a command of this user has worked in his home.
	after func(user string)
	// others tells that another berth works on the same directory: what waits there
	// is its to run.
	others bool
	// lost counts one event for which nothing runs any more. command is "" for
	// hookLostCorrupt.
	lost func(command, reason string)
}

var (
	errHookQueueFull = errors.New("on_upload queue full")
	errHookCorrupt   = errors.New("not a record of this queue, or damaged")

	hookFileName = regexp.MustCompile(`^(?:corrupt-)?([0-9a-f]{16})\.json$`)
	hookTable    = crc32.MakeTable(crc32.Castagnoli)
)

// A hookQueue holds the events for which on_upload has yet to succeed, each in a
// file of its own, and runs the commands: at least once for each event, one at a
// time and in order for one user. An event that fails holds back the user's later
// ones (never anybody else's) until it succeeds or is given up, because what a
// command makes of a series of uploads depends on the order; and while a
// destination is away, that loses one event in 36 minutes and not all of them.
type hookQueue struct {
	dir    string
	config func() *config
	log    *slog.Logger
	sinks  hookSinks
	folder *os.File      // dir, to sync it
	wake   chan struct{} // something may have become due

	mu    mutex // guards what follows, the lanes and their entries; not held for I/O
	lanes map[string]*hookLane
	count map[string]int // events of each user, with those on their way to the disk
	total int            // the sum of count
	seq   uint64         // the last number given to an event
	turns uint64         // the last number given to a lane
}

// A hookLane is the events of one user, by number; it is never empty.
type hookLane struct {
	entries []*hookEntry
	busy    bool   // one of them is being worked on
	turn    uint64 // the lane with the lowest is next, and goes to the end of the line
}

type hookEntry struct {
	seq   uint64
	event uploadEvent
	tries int       // that failed
	due   time.Time // of the next one
}

// hookRecord is an entry on the disk, followed by its CRC-32C in hex.
type hookRecord struct {
	Version int         `json:"version"`
	Tries   int         `json:"tries"`
	Due     time.Time   `json:"due"`
	Event   uploadEvent `json:"event"`
}

// newHookQueue makes dir if need be and takes over what an earlier run left
// there. What is damaged is logged and set aside. config is asked at each use for
// [commands], [exec] and transfer.durable as they are then.
func newHookQueue(dir string, config func() *config, log *slog.Logger, sinks hookSinks) (*hookQueue, error) {
	q := &hookQueue{
		dir: dir, config: config, log: log, sinks: sinks,
		wake:  make(chan struct{}, 1),
		lanes: map[string]*hookLane{}, count: map[string]int{},
	}
	if err := q.load(); err != nil {
		return nil, errorf("on_upload queue: %w; make its directory one that berth may write", err)
	}
	return q, nil
}

func (q *hookQueue) load() error {
	if err := os.MkdirAll(q.dir, 0o700); err != nil {
		return err
	}
	folder, err := os.Open(q.dir)
	if err != nil {
		return err
	}
	q.folder = folder
	if q.sinks.others {
		q.seq = 1<<62 | rand.Uint64()>>2 // numbers that it will not come to
		return nil
	}
	names, err := namesIn(q.dir)
	if err != nil {
		folder.Close()
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, hookNewPrefix) {
			os.Remove(filepath.Join(q.dir, name)) // add never returned: nobody counts on it
			continue
		}
		m := hookFileName.FindStringSubmatch(name)
		if m == nil {
			continue // not ours
		}
		seq, _ := strconv.ParseUint(m[1], 16, 64)
		q.seq = max(q.seq, seq)
		if strings.HasPrefix(name, hookCorruptPrefix) {
			continue
		}
		rec, err := readHookRecord(filepath.Join(q.dir, name))
		if err != nil {
			q.setAside(name, err)
			continue
		}
		e := &hookEntry{seq: seq, event: rec.Event, tries: rec.Tries}
		if n := min(rec.Tries, len(hookBackoff)); n > 0 {
			// A clock that was set back must not make it wait longer than it would have.
			if most := time.Now().Add(hookBackoff[n-1]); rec.Due.Before(most) {
				e.due = rec.Due
			} else {
				e.due = most
			}
		}
		q.count[e.event.User]++
		q.total++
		q.insert(e)
	}
	if q.total > 0 {
		q.log.Info("on_upload queue", "waiting", q.total)
	}
	return nil
}

// setAside takes a record out of the queue and keeps it for a person to look at.
func (q *hookQueue) setAside(name string, why error) {
	kept := filepath.Join(q.dir, hookCorruptPrefix+name)
	if err := os.Rename(filepath.Join(q.dir, name), kept); err != nil {
		why, kept = joinErrors(why, err), filepath.Join(q.dir, name)
	}
	q.log.Error("on_upload event unreadable", "path", kept, "error", why)
	q.sinks.lost("", hookLostCorrupt)
}

func readHookRecord(path string) (*hookRecord, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, hookRecordMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > hookRecordMax {
		return nil, errorf("%w: longer than %v", errHookCorrupt, byteSize(hookRecordMax))
	}
	return decodeHookRecord(data)
}

// encode is the record as it lies on the disk. JSON strings are Unicode and names
// are bytes, so these are quoted as Go strings first.
func (r hookRecord) encode() ([]byte, error) {
	for _, s := range r.Event.names() {
		*s = strconv.Quote(*s)
	}
	data, err := json.Marshal(r)
	if err != nil {
		return nil, err // a time beyond the year 9999
	}
	return fmt.Appendf(data, "\n%08x\n", crc32.Checksum(data, hookTable)), nil
}

func decodeHookRecord(data []byte) (*hookRecord, error) {
	text, sum, _ := bytes.Cut(data, []byte{'\n'})
	if string(sum) != fmt.Sprintf("%08x\n", crc32.Checksum(text, hookTable)) {
		return nil, errorf("%w: the checksum does not match", errHookCorrupt)
	}
	var r hookRecord
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, errorf("%w: %w", errHookCorrupt, err)
	}
	if r.Version != hookRecordVersion {
		return nil, errorf("%w: version %d, and this berth knows %d", errHookCorrupt, r.Version, hookRecordVersion)
	}
	for _, s := range r.Event.names() {
		name, err := strconv.Unquote(*s)
		if err != nil {
			return nil, errorf("%w: a name is not quoted", errHookCorrupt)
		}
		*s = name
	}
	if r.Event.User == "" || r.Event.Command == "" || r.Tries < 0 {
		return nil, errorf("%w: a field is missing", errHookCorrupt)
	}
	return &r, nil
}

// names is the fields that may hold any byte.
func (ev *uploadEvent) names() []*string { return []*string{&ev.Path, &ev.File, &ev.Dir} }

func (q *hookQueue) path(seq uint64) string {
	return filepath.Join(q.dir, fmt.Sprintf("%016x%s", seq, hookSuffix))
}

// add puts an event into the queue. When it returns nil the event is in a file,
// under transfer.durable also on stable storage, and its command will run even
// if berth ends now. An error, errHookQueueFull among others, has been logged and
// counted, and means that the command will not run for this upload. Two fsyncs
// cost what they cost; concurrent calls share them in the kernel. It may be called
// from any goroutine, also before run and after.
func (q *hookQueue) add(ev uploadEvent) error {
	reason, err := q.tryAdd(ev)
	if err != nil {
		q.log.Error("on_upload event lost", "user", ev.User, "command", ev.Command, "path", ev.Path, "reason", reason, "error", err)
		q.sinks.lost(ev.Command, reason)
	}
	return err
}

func (q *hookQueue) tryAdd(ev uploadEvent) (reason string, err error) {
	seq, err := q.reserve(ev.User)
	if err != nil {
		return hookLostFull, err
	}
	e := &hookEntry{seq: seq, event: ev}
	if err := q.store(seq, e.record()); err != nil {
		os.Remove(q.path(seq)) // it may have got its name
		q.mu.Lock()
		q.uncount(ev.User)
		q.mu.Unlock()
		return hookLostNotStored, errorf("on_upload queue: %w", err)
	}
	q.mu.Lock()
	q.insert(e)
	q.mu.Unlock()
	q.nudge()
	return "", nil
}

// reserve takes a place in the queue before anything is written, so that no
// number of uploads at once passes the bound.
func (q *hookQueue) reserve(user string) (seq uint64, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.total >= hookQueueMax:
		return 0, errorf("%w: %d events wait, and the most is %d; see why their commands do not succeed",
			errHookQueueFull, q.total, hookQueueMax)
	case q.count[user] >= hookUserMax:
		return 0, errorf("%w: %d events of user %q wait, and the most is %d; see why their command does not succeed",
			errHookQueueFull, q.count[user], user, hookUserMax)
	}
	q.count[user]++
	q.total++
	q.seq++
	return q.seq, nil
}

// uncount gives up a place in the queue. q.mu is held.
func (q *hookQueue) uncount(user string) {
	q.total--
	if q.count[user]--; q.count[user] == 0 {
		delete(q.count, user)
	}
}

// record is what of e goes to the disk.
//
//go:noinline
func (e *hookEntry) record() hookRecord {
	return hookRecord{Version: hookRecordVersion, Tries: e.tries, Due: e.due.UTC(), Event: e.event}
}

// store writes the file of an entry, or writes it anew; a crash leaves the old
// content or the new.
func (q *hookQueue) store(seq uint64, rec hookRecord) error {
	data, err := rec.encode()
	if err != nil {
		return err
	}
	durable := q.config().Transfer.Durable
	path := q.path(seq)
	fresh := filepath.Join(q.dir, hookNewPrefix+filepath.Base(path))
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = cmp.Or(err, f.Close()); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		os.Remove(fresh)
		return err
	}
	if !durable {
		return nil
	}
	if err := q.folder.Sync(); !errors.Is(err, syscall.EINVAL) { // that is a file system without directory sync
		return err
	}
	return nil
}

// insert puts a stored entry into its user's lane. q.mu is held, except by load.
func (q *hookQueue) insert(e *hookEntry) {
	l := q.lanes[e.event.User]
	if l == nil {
		q.turns++
		l = &hookLane{turn: q.turns}
		q.lanes[e.event.User] = l
	}
	// Usually the last; uploads that end together may reach the disk in another order.
	i := len(l.entries)
	for i > 0 && l.entries[i-1].seq > e.seq {
		i--
	}
	l.entries = append(l.entries, nil)
	copy(l.entries[i+1:], l.entries[i:])
	l.entries[i] = e
}

// nudge makes run look again.
func (q *hookQueue) nudge() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// len is how many events wait or are being worked on.
func (q *hookQueue) len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.total
}

// retryNow makes every event that waits for its next try due at once. It is for
// the operator who has mended a command and reloads.
func (q *hookQueue) retryNow() {
	q.mu.Lock()
	for _, l := range q.lanes {
		for _, e := range l.entries {
			e.due = time.Time{}
		}
	}
	q.mu.Unlock()
	q.nudge()
}

// run works on the queue until ctx ends, and returns when no command of it is
// left. What was cut off then has not been tried, and stays with the rest on the
// disk for the next start. The return may take programGrace and a little more. It
// must be called once.
func (q *hookQueue) run(ctx context.Context) {
	done := make(chan struct{})
	busy := 0
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	for ctx.Err() == nil {
		alarm.Stop()
		if busy < hookWorkers {
			l, e, wait := q.next(time.Now())
			if e != nil {
				busy++
				go func() {
					q.handle(ctx, l, e)
					done <- struct{}{}
				}()
				continue
			}
			if wait > 0 {
				alarm.Reset(wait)
			}
		}
		select {
		case <-q.wake:
		case <-alarm.C:
		case <-done:
			busy--
		case <-ctx.Done():
		}
	}
	for ; busy > 0; busy-- {
		<-done
	}
}

// next takes the first event of the lane whose turn it is. If nothing is due,
// wait is how long until something will be, 0 if nothing waits.
func (q *hookQueue) next(now time.Time) (l *hookLane, e *hookEntry, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, other := range q.lanes {
		if other.busy {
			continue
		}
		if d := other.entries[0].due.Sub(now); d > 0 {
			if wait == 0 || d < wait {
				wait = d
			}
		} else if l == nil || other.turn < l.turn {
			l = other
		}
	}
	if l == nil {
		return nil, nil, wait
	}
	l.busy = true
	q.turns++
	l.turn = q.turns
	return l, l.entries[0], 0
}

// handle tries one event and decides what becomes of it.
func (q *hookQueue) handle(ctx context.Context, l *hookLane, e *hookEntry) {
	ev := &e.event
	log := q.log.With("user", ev.User, "command", ev.Command, "path", ev.Path)
	cfg := q.config()
	if problem := onUploadProblem(cfg, ev.Command); problem != "" {
		log.Error("on_upload event lost", "reason", hookLostNoCommand, "error", problem)
		q.forget(l, e, hookLostNoCommand)
		return
	}
	if e.tries > 0 {
		// Clients rename and delete what they have uploaded, and the command may have
		// moved it: a second try can only fail as the first one did.
		if _, err := os.Lstat(ev.File); errors.Is(err, fs.ErrNotExist) {
			log.Warn("on_upload event lost", "reason", hookLostFileGone, "tries", e.tries)
			q.forget(l, e, hookLostFileGone)
			return
		}
	}
	cmd := cfg.Commands[ev.Command]
	tail := &tailBuffer{max: hookOutputMax}
	r := q.sinks.launch(ctx, program{
		Argv: rawTexts(cmd.Run), Env: rawTexts(ev.environment()), Root: rawText(ev.Dir), Dir: ".",
		Sandbox: q.sinks.sandbox(ev.User, ev.Command),
		Timeout: cmp.Or(cmd.Timeout, cfg.Exec.Timeout).std(), Grace: programGrace,
		Output: int64(cfg.Exec.Output),
	}, programIO{output: func(_ byte, p []byte) error {
		tail.Write(p)
		return nil
	}})
	result := hookResult(r)
	q.sinks.ran(ev.Command, result, r.took)
	q.sinks.after(ev.User)
	log = log.With("result", result, "dur", r.took)
	if r.left {
		log.Warn("on_upload command cannot be ended")
	}
	switch result {
	case hookRanOK:
		log.Info("on_upload")
		q.forget(l, e, "")
		return
	case hookRanStopped:
		log.Info("on_upload cut off, to be run at the next start")
		q.leave(l)
		return
	}
	// Tries are counted on the disk too: a restart is no reason to begin again.
	q.mu.Lock()
	e.tries++
	tries := e.tries
	if tries < hookTries {
		e.due = time.Now().Add(hookBackoff[tries-1])
	}
	rec := e.record()
	q.mu.Unlock()
	log = log.With("tries", tries, "exit", r.exit, "output", tail.String())
	if r.signal != 0 {
		log = log.With("signal", unix.SignalName(r.signal))
	}
	if r.err != nil {
		log = log.With("error", r.err)
	}
	if tries >= hookTries {
		log.Error("on_upload event lost", "reason", hookLostGivenUp)
		q.forget(l, e, hookLostGivenUp)
		return
	}
	log.Warn("on_upload failed", "again_in", hookBackoff[tries-1])
	if err := q.store(e.seq, rec); err != nil {
		log.Error("on_upload try not recorded", "error", err)
	}
	q.leave(l)
}

// hookResult is the word that metrics and logs have for the end of a try.
func hookResult(r programResult) string {
	switch {
	case r.ok():
		return hookRanOK
	case r.reason == programCancelled:
		return hookRanStopped
	case r.reason == programExited || r.reason == programSignalled:
		return hookRanFailed
	}
	return string(r.reason)
}

// leave gives the lane back with its first event still in it.
func (q *hookQueue) leave(l *hookLane) {
	q.mu.Lock()
	l.busy = false
	q.mu.Unlock()
}

// forget ends an event, for a reason if it was lost, and gives its lane back. The
// removal is not synced: after a power cut the command may run once more.
func (q *hookQueue) forget(l *hookLane, e *hookEntry, reason string) {
	if err := os.Remove(q.path(e.seq)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		q.log.Error("on_upload event stays on the disk and will run again at the next start", "error", err)
	}
	if reason != "" {
		q.sinks.lost(e.event.Command, reason)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	l.busy = false
	// Not always the first: an older one may have reached the disk meanwhile.
	if i := slices.Index(l.entries, e); i >= 0 {
		l.entries = slices.Delete(l.entries, i, i+1)
	}
	if len(l.entries) == 0 {
		delete(q.lanes, e.event.User)
	}
	q.uncount(e.event.User)
}
