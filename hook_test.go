package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// A hookBench is a queue with what it reported.
type hookBench struct {
	*hookQueue
	cfg *config
	log *hookLog

	mu   sync.Mutex
	runs []string // "command result"
	gone []string // "command reason"
}

// A hookLog is a log that can be read while it is written.
type hookLog struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *hookLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *hookLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newHookBench(t *testing.T, dir string) *hookBench {
	t.Helper()
	b := &hookBench{cfg: defaultConfig(), log: &hookLog{}}
	b.cfg.Commands = map[string]commandConfig{"thumb": {Run: []string{"/bin/true"}}}
	var err error
	b.hookQueue, err = newHookQueue(dir, func() *config { return b.cfg }, slog.New(slog.NewTextHandler(b.log, nil)), hookSinks{
		launch:  newLauncher(slog.New(slog.DiscardHandler), false).run,
		sandbox: func(string, string) *sandbox { return nil },
		after:   func(string) {},
		ran: func(command, result string, _ time.Duration) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.runs = append(b.runs, command+" "+result)
		},
		lost: func(command, reason string) {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.gone = append(b.gone, command+" "+reason)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.folder.Close() })
	return b
}

// want checks what was counted, in order.
func (b *hookBench) want(t *testing.T, runs, gone []string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.runs, runs) || !slices.Equal(b.gone, gone) {
		t.Errorf("counted runs %q, lost %q; want %q and %q\n%s", b.runs, b.gone, runs, gone, b.log)
	}
}

func hookEvent(t *testing.T, user, name string) uploadEvent {
	return uploadEvent{User: user, Command: "thumb", Path: "/" + name, File: "/", Dir: t.TempDir(), Size: 5,
		Address: "192.0.2.1", Protocol: "ftp", Time: time.Date(2026, 3, 4, 5, 6, 7, 8000, time.UTC), Session: 9}
}

func mustAdd(t *testing.T, q *hookQueue, events ...uploadEvent) {
	t.Helper()
	for _, ev := range events {
		if err := q.add(ev); err != nil {
			t.Fatal(err)
		}
	}
}

// waiting is the paths of the events in the queue by user, in order.
func (q *hookQueue) waiting() map[string][]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	w := map[string][]string{}
	for user, l := range q.lanes {
		for _, e := range l.entries {
			w[user] = append(w[user], e.event.Path)
		}
	}
	return w
}

func filesIn(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// hookPath is what the fake programs know their event by.
func hookPath(p program) string {
	for _, kv := range p.Env {
		if v, ok := strings.CutPrefix(string(kv), "BERTH_PATH="); ok {
			return v
		}
	}
	return ""
}

// The whole way with a real program: what it gets, and names that try to be more.
func TestHookRunsWithTheUploadInItsEnvironment(t *testing.T) {
	b := newHookBench(t, filepath.Join(t.TempDir(), "state", "on_upload"))
	home := t.TempDir()
	script := filepath.Join(home, "hook.sh")
	if err := os.WriteFile(script, []byte(`tr '\0' '\n' </proc/$$/environ >"$HOME/got.new" && mv got.new got`), 0o600); err != nil {
		t.Fatal(err)
	}
	b.cfg.Commands["thumb"] = commandConfig{Run: []string{"/bin/sh", script}}
	ev := hookEvent(t, "ann", "a\nBERTH_USER=root\x1b[2J\xff$(reboot)")
	ev.Dir, ev.File, ev.SHA256 = home, home+ev.Path, strings.Repeat("ab", 32)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	b.sinks.ran = func(string, string, time.Duration) { cancel() }
	go func() { b.run(ctx); close(done) }()
	mustAdd(t, b.hookQueue, ev)
	<-done
	got, err := os.ReadFile(filepath.Join(home, "got"))
	want := "PATH=" + programPath + "\nHOME=" + home + "\nLANG=C.UTF-8\nBERTH_USER=ann\nBERTH_PATH=" + ev.Path + "\nBERTH_FILE=" + ev.File +
		"\nBERTH_SIZE=5\nBERTH_SHA256=" + ev.SHA256 + "\nBERTH_ADDRESS=192.0.2.1\nBERTH_PROTOCOL=ftp\nBERTH_TIME=2026-03-04T05:06:07.000008Z\nBERTH_SESSION=9\n"
	if string(got) != want || err != nil {
		t.Errorf("environment %q, %v;\nwant %q", got, err, want)
	}
	if n := b.len(); n != 0 || len(filesIn(t, b.dir)) != 0 {
		t.Errorf("%d events left, files %q", n, filesIn(t, b.dir))
	}
	if log := b.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `msg=on_upload user=ann command=thumb`) {
		t.Errorf("log %q", log)
	}
	noChildGoroutine(t)
}

// Stopping ends the real program and keeps its event, which has not been tried.
func TestHookCutOffByStopIsRunAgain(t *testing.T) {
	b := newHookBench(t, t.TempDir())
	ev := hookEvent(t, "ann", "a")
	b.cfg.Commands["thumb"] = commandConfig{Run: []string{"/bin/sh", "-c", "echo $$ ready; exec sleep 300"}}
	ctx, cancel := context.WithCancel(t.Context())
	out := &readyWriter{ready: cancel}
	launch := b.sinks.launch
	b.sinks.launch = func(ctx context.Context, p program, _ programIO) programResult {
		return launch(ctx, p, programIO{output: func(_ byte, p []byte) error {
			out.Write(p)
			return nil
		}})
	}
	mustAdd(t, b.hookQueue, ev)
	b.run(ctx)
	wantGone(t, out.String(), 1)
	b.want(t, []string{"thumb stopped"}, nil)

	again := newHookBench(t, b.dir)
	again.cfg.Commands["thumb"] = commandConfig{Run: []string{"/bin/sh", "-c", ": >ran"}}
	ctx, cancel = context.WithCancel(t.Context())
	again.sinks.ran = func(string, string, time.Duration) { cancel() }
	if e := again.lanes["ann"].entries[0]; e.tries != 0 || e.event != ev {
		t.Errorf("the event came back with %d tries as %+v; want none, %+v", e.tries, e.event, ev)
	}
	again.run(ctx)
	if _, err := os.Stat(filepath.Join(ev.Dir, "ran")); err != nil {
		t.Error(err)
	}
	if n := again.len(); n != 0 {
		t.Errorf("%d events left", n)
	}
}

// A daemon that is killed leaves what it had: whole events as they were, with
// their tries; nothing of an event that was never acknowledged.
func TestHookQueueSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHookBench(t, t.TempDir())
		b.cfg.Commands["thumb"] = commandConfig{Run: []string{"/bin/false"}}
		b.sinks.launch = func(context.Context, program, programIO) programResult {
			return programResult{reason: programExited, exit: 1}
		}
		events := []uploadEvent{hookEvent(t, "ann", "first"), hookEvent(t, "ann", "\x00\xff\xfe\"\\\n\u2028ü"), hookEvent(t, "bob", strings.Repeat("\xff", 4095))}
		mustAdd(t, b.hookQueue, events...)
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		b.run(ctx) // at 0 and at 10 s
		b.want(t, slices.Repeat([]string{"thumb failed"}, 4), nil)
		if err := os.WriteFile(filepath.Join(b.dir, hookNewPrefix+"00000000000000ff.json"), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}

		again := newHookBench(t, b.dir)
		again.want(t, nil, nil)
		if len(filesIn(t, b.dir)) != 3 || again.len() != 3 {
			t.Errorf("files %q, %d events; want 3", filesIn(t, b.dir), again.len())
		}
		ann := again.lanes["ann"].entries
		if ann[0].event != events[0] || ann[1].event != events[1] || again.lanes["bob"].entries[0].event != events[2] {
			t.Errorf("events changed: %+v, %+v", ann[0].event, ann[1].event)
		}
		// The second try was at 10 s and the next is a minute after it; it is 15 s now.
		if wait := time.Until(ann[0].due); ann[0].tries != 2 || ann[1].tries != 0 || wait != 55*time.Second {
			t.Errorf("tries %d and %d, the next in %v; want 2 and 0, 55s", ann[0].tries, ann[1].tries, wait)
		}
		mustAdd(t, again.hookQueue, hookEvent(t, "ann", "last"))
		if w := again.waiting()["ann"]; len(w) != 3 || w[2] != "/last" {
			t.Errorf("order after a restart: %q", w)
		}
	})
}

// A clock that was set back by years does not put a try off by years.
func TestHookRetryAfterClockJump(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		for i, due := range []time.Time{time.Now().AddDate(10, 0, 0), time.Now().AddDate(-10, 0, 0)} {
			ev := hookEvent(t, fmt.Sprintf("user%d", i), "a")
			data, err := hookRecord{Version: hookRecordVersion, Tries: 1, Due: due, Event: ev}.encode()
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%016x.json", i+1)), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		b := newHookBench(t, dir)
		b.sinks.launch = func(context.Context, program, programIO) programResult { return programResult{reason: programExited} }
		ctx, cancel := context.WithTimeout(t.Context(), hookBackoff[0]+time.Second)
		defer cancel()
		b.run(ctx)
		b.want(t, []string{"thumb ok", "thumb ok"}, nil)
	})
}

func TestHookBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHookBench(t, t.TempDir())
		began := time.Now()
		var at []time.Duration
		results := []programResult{
			{reason: programExited, exit: 1}, {reason: programSignalled, exit: -1, signal: unix.SIGSEGV}, {reason: programTimeout, exit: -1, signal: unix.SIGKILL},
			{reason: programStartFailed, exit: -1, err: unix.ENOENT}, {reason: programOutputLimit, exit: -1},
		}
		b.sinks.launch = func(_ context.Context, p program, io programIO) programResult {
			if hookPath(p) != "/bad" {
				return programResult{reason: programExited}
			}
			io.output(programStderr, []byte("no disk\n"))
			at = append(at, time.Since(began))
			return results[len(at)-1]
		}
		// The later one waits for the first, and only for as long as that is tried.
		mustAdd(t, b.hookQueue, hookEvent(t, "ann", "bad"), hookEvent(t, "ann", "good"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		b.run(ctx)
		if want := []time.Duration{0, 10 * time.Second, 70 * time.Second, 370 * time.Second, 2170 * time.Second}; !slices.Equal(at, want) {
			t.Errorf("tries at %v; want %v", at, want)
		}
		b.want(t, []string{"thumb failed", "thumb failed", "thumb timeout", "thumb start_failed", "thumb output_limit", "thumb ok"}, []string{"thumb given_up"})
		if b.len() != 0 || len(filesIn(t, b.dir)) != 0 {
			t.Errorf("%d events left, files %q", b.len(), filesIn(t, b.dir))
		}
		last := ""
		for line := range strings.Lines(b.log.String()) {
			if strings.Contains(line, "level=ERROR") {
				last += line
			}
		}
		if strings.Count(last, "\n") != 1 || !strings.Contains(last, `output="no disk"`) || !strings.Contains(last, "reason=given_up") {
			t.Errorf("errors in the log %q; want one, with the output", last)
		}
	})
}

// A mended command is tried when the operator says so.
func TestHookRetryNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHookBench(t, t.TempDir())
		exit := 1
		b.sinks.launch = func(context.Context, program, programIO) programResult {
			return programResult{reason: programExited, exit: exit}
		}
		mustAdd(t, b.hookQueue, hookEvent(t, "ann", "a"))
		ctx, cancel := context.WithCancel(t.Context())
		go b.run(ctx)
		synctest.Wait()
		exit = 0
		b.retryNow()
		synctest.Wait()
		b.want(t, []string{"thumb failed", "thumb ok"}, nil)
		cancel()
	})
}

// In order for one user, one at a time; hookWorkers at once in all; and a user
// with a long list does not keep others waiting.
func TestHookOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHookBench(t, t.TempDir())
		var mu sync.Mutex
		running := map[string]int{}
		var order []string
		b.sinks.launch = func(_ context.Context, p program, _ programIO) programResult {
			path := hookPath(p)
			user := path[1:4]
			mu.Lock()
			running[user]++
			order = append(order, path)
			if len(running) > hookWorkers || running[user] > 1 {
				t.Errorf("at once: %v", running)
			}
			mu.Unlock()
			time.Sleep(time.Second)
			mu.Lock()
			delete(running, user)
			mu.Unlock()
			return programResult{reason: programExited}
		}
		want := map[string][]string{}
		for _, user := range []string{"ann", "bob", "cat"} {
			for i := range 10 {
				ev := hookEvent(t, user, fmt.Sprintf("%s%d", user, i))
				want[user] = append(want[user], ev.Path)
				mustAdd(t, b.hookQueue, ev)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		b.run(ctx)
		got := map[string][]string{}
		for _, p := range order {
			got[p[1:4]] = append(got[p[1:4]], p)
		}
		if !maps.EqualFunc(got, want, slices.Equal) {
			t.Errorf("order %q; want %q", got, want)
		}
		for user := range want {
			if first := slices.Index(order, "/"+user+"0"); first >= 2*hookWorkers {
				t.Errorf("%s came as number %d: %q", user, first+1, order)
			}
		}
	})
}

// A reload may take a command away or give it placeholders; a client may take the
// file away.
func TestHookWithNothingToRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newHookBench(t, t.TempDir())
		b.sinks.launch = func(context.Context, program, programIO) programResult {
			return programResult{reason: programExited, exit: 1}
		}
		b.cfg.Commands["fill"] = commandConfig{Run: []string{"/bin/echo", "-o={file}"}, Args: map[string]string{"file": "a"}}
		removed, fill, moved := hookEvent(t, "ann", "a"), hookEvent(t, "bob", "b"), hookEvent(t, "cat", "c")
		removed.Command, fill.Command = "removed", "fill"
		moved.File = filepath.Join(moved.Dir, "renamed")
		mustAdd(t, b.hookQueue, removed, fill, moved)
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		b.run(ctx)
		slices.Sort(b.gone)
		b.want(t, []string{"thumb failed"}, []string{"fill no_command", "removed no_command", "thumb file_gone"})
		if b.len() != 0 || len(filesIn(t, b.dir)) != 0 {
			t.Errorf("%d events left", b.len())
		}
	})
}

func TestOnUploadProblem(t *testing.T) {
	cfg := defaultConfig()
	cfg.Commands = map[string]commandConfig{
		"good": {Run: []string{"/usr/bin/find", ".", "-exec", "rm", "{}", ";"}},
		"fill": {Run: []string{"/bin/echo", "x", "-o={file}"}, Args: map[string]string{"file": "a"}},
	}
	for name, want := range map[string]string{
		"good": "",
		"none": `there is no command "none"; define it as [commands.NAME] in the configuration`,
		"fill": `command "fill" has {file}, which only a client can fill in; name a command without placeholders, which finds the upload in BERTH_FILE`,
	} {
		if got := onUploadProblem(cfg, name); got != want {
			t.Errorf("onUploadProblem(%q) = %q; want %q", name, got, want)
		}
	}
}

// The bounds hold whoever adds and however many at once, and say what they are.
func TestHookQueueIsBounded(t *testing.T) {
	b := newHookBench(t, t.TempDir())
	b.cfg.Transfer.Durable = false
	dir := t.TempDir()
	// As if that many lay there already: making 10,000 files takes seconds.
	const free = 10
	for _, user := range []string{"ann", "bob"} {
		b.count[user] = hookUserMax - free
		b.total += b.count[user]
	}
	var adders sync.WaitGroup
	var mu sync.Mutex
	var refused []error
	for _, user := range []string{"ann", "bob"} {
		for range 2 {
			adders.Go(func() {
				for range free {
					if err := b.add(uploadEvent{User: user, Command: "thumb", Path: "/a", File: "/", Dir: dir}); err != nil {
						mu.Lock()
						refused = append(refused, err)
						mu.Unlock()
					}
				}
			})
		}
	}
	adders.Wait()
	if n := b.len(); n != hookQueueMax || len(filesIn(t, b.dir)) != 2*free || len(refused) != 2*free || len(b.gone) != 2*free {
		t.Errorf("%d events, %d files, %d refused, %d counted; want %d, then %d each",
			n, len(filesIn(t, b.dir)), len(refused), len(b.gone), hookQueueMax, 2*free)
	}
	err := b.add(hookEvent(t, "cat", "a"))
	if !errors.Is(err, errHookQueueFull) || !strings.Contains(err.Error(), "10000") {
		t.Errorf("add to a full queue: %v", err)
	}
	b.mu.Lock()
	b.uncount("ann")
	b.mu.Unlock()
	if err := b.add(hookEvent(t, "bob", "a")); !errors.Is(err, errHookQueueFull) || !strings.Contains(err.Error(), "5000") {
		t.Errorf("add by a user who has his part: %v", err)
	}
	mustAdd(t, b.hookQueue, hookEvent(t, "cat", "a"))
	if !strings.Contains(b.log.String(), `msg="on_upload event lost" user=cat command=thumb path=/a reason=queue_full`) {
		t.Error("not in the log")
	}
}

// Every damage to a record is seen: what does not read back the same is set aside.
func TestHookCorruptRecordsAreSetAside(t *testing.T) {
	ev := hookEvent(t, "ann", "a")
	good, err := hookRecord{Version: hookRecordVersion, Event: ev}.encode()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := decodeHookRecord(good); err != nil || r.Event != ev {
		t.Fatalf("decodeHookRecord: %+v, %v", r, err)
	}
	for i := range good {
		if _, err := decodeHookRecord(good[:i]); !errors.Is(err, errHookCorrupt) {
			t.Errorf("cut off at %d: %v", i, err)
		}
		flipped := slices.Clone(good)
		flipped[i] ^= 1
		if _, err := decodeHookRecord(flipped); !errors.Is(err, errHookCorrupt) {
			t.Errorf("a bit changed at %d: %v", i, err)
		}
	}
	later, err := hookRecord{Version: hookRecordVersion + 1, Event: ev}.encode()
	if err != nil {
		t.Fatal(err)
	}

	dir := t.TempDir()
	for name, data := range map[string][]byte{
		"0000000000000001.json": good[:50], "0000000000000002.json": nil, "0000000000000003.json": later,
		"0000000000000004.json": bytes.Repeat([]byte("x"), hookRecordMax+1), "0000000000000006.json": good, "README": []byte("mine"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "0000000000000005.json"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "0000000000000007.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	b := newHookBench(t, dir)
	b.want(t, nil, slices.Repeat([]string{" corrupt"}, 6))
	if w := b.waiting(); b.len() != 1 || len(w["ann"]) != 1 {
		t.Errorf("what was left: %q", w)
	}
	var aside int
	for _, name := range filesIn(t, dir) {
		if strings.HasPrefix(name, hookCorruptPrefix) {
			aside++
		}
	}
	if aside != 6 {
		t.Errorf("files %q; want 6 set aside", filesIn(t, dir))
	}
	mustAdd(t, b.hookQueue, ev) // under a number of its own
	again := newHookBench(t, dir)
	again.want(t, nil, nil) // once is enough
	if again.len() != 2 {
		t.Errorf("%d events; want 2", again.len())
	}
}

// Without a place to write, add says so and counts nothing as waiting.
func TestHookQueueThatCannotBeWritten(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newHookQueue(file, defaultConfig, slog.New(slog.DiscardHandler), hookSinks{}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("newHookQueue on a file: %v", err)
	}
	b := newHookBench(t, t.TempDir())
	if err := os.Remove(b.dir); err != nil {
		t.Fatal(err)
	}
	if err := b.add(hookEvent(t, "ann", "a")); err == nil || errors.Is(err, errHookQueueFull) {
		t.Errorf("add without a directory: %v", err)
	}
	if b.len() != 0 {
		t.Errorf("%d events wait", b.len())
	}
	b.want(t, nil, []string{"thumb not_stored"})
}

// Sessions add while the workers work; each event runs once.
func TestHookConcurrentAdds(t *testing.T) {
	b := newHookBench(t, t.TempDir())
	const sessions, each = 8, 25
	ran := map[string]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	total := 0
	b.sinks.launch = func(_ context.Context, p program, _ programIO) programResult {
		mu.Lock()
		defer mu.Unlock()
		ran[hookPath(p)]++
		return programResult{reason: programExited}
	}
	b.sinks.ran = func(string, string, time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if total++; total == sessions*each {
			cancel()
		}
	}
	done := make(chan struct{})
	go func() { b.run(ctx); close(done) }()
	dir := t.TempDir()
	for s := range sessions {
		go func() {
			for i := range each {
				if err := b.add(uploadEvent{User: fmt.Sprint("user", s%3), Command: "thumb", Path: fmt.Sprintf("/%d-%d", s, i), File: "/", Dir: dir}); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	<-done
	if len(ran) != sessions*each || b.len() != 0 || len(filesIn(t, b.dir)) != 0 {
		t.Errorf("%d events ran, %d wait, files %q", len(ran), b.len(), filesIn(t, b.dir))
	}
}
