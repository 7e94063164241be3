// client_syncrun.go does what the plan of a sync says, or tells what it would do, and
// is the verb's frame: which tree is which, connections that are made again, lines and
// the summary. Files go through the engine (client_transfer.go); everything else that is
// asked of the box goes over one connection, many requests behind each other without
// waiting, so that ten thousand directories do not cost as many ways there and back.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// syncWindow is how many requests are on their way, and syncBatch how many answers
	// are taken at once: the connection is flushed once for as many.
	syncWindow = 128
	syncBatch  = 64
	// syncLostDirs is how many directories that could not be made are remembered, to be
	// silent about what was to be in them.
	syncLostDirs = 1000
)

// A syncRun is one sync.
type syncRun struct {
	o       syncOptions
	ctx     context.Context
	main    func() (*remote, error) // the connection that is there, or another if it was lost
	other   func() (*remote, error) // one more
	release func(c *remote)         // that other has given
	engine  engineOptions
	prog    *progress
	local   string   // the tree here
	root    *os.Root // the same; nil: it is not there yet
	top     string   // the tree on the box
	base    string   // what names begin with when they are shown
	topIs   string   // how the destination's own directory is shown
	fresh   bool     // it has to be made

	c        *remote
	waiting  []*syncAsk
	settling bool
	flushes  int
	trouble  time.Time // since when there has been no answer; zero: there was
	lost     []string  // directories that could not be made

	sent, bytes, moved, deleted, failed atomic.Int64
}

// remotePath is where a name is on the box.
//
//go:noinline
func (s *syncRun) remotePath(name string) string { return joinRemote(s.top, name) }

// say and warn tell a person something.
func (s *syncRun) say(format string, args ...any) {
	s.prog.say("berth %s: %s", s.engine.verb, fmt.Sprintf(format, args...))
}

func (s *syncRun) warn(format string, args ...any) {
	s.prog.warn("berth %s: %s", s.engine.verb, fmt.Sprintf(format, args...))
}

// --- requests, one behind the other ---

// A syncAsk is a request on its way.
type syncAsk struct {
	q    remoteRequest
	call *remoteCall // nil: it has to be sent yet, or again
	turn int         // of flushes, when it was sent
	done func(a *remoteAnswer, err error) error
}

// ask implements digester. Requests must be such that they may be made twice: a
// connection that is lost takes answers with it.
func (s *syncRun) ask(q remoteRequest, done func(a *remoteAnswer, err error) error) error {
	k := &syncAsk{q: q, done: done, turn: s.flushes}
	if q.Do != "" && s.c != nil && s.c.broken() == nil { // else settleTo makes another
		k.call, _ = s.c.begin(q, remoteHandlers{}) // settleTo sees to it if that fails
	}
	s.waiting = append(s.waiting, k)
	if len(s.waiting) < syncWindow || s.settling {
		return nil
	}
	return s.settleTo(syncWindow - syncBatch)
}

func (s *syncRun) settle() error { return s.settleTo(0) }

// settleTo takes answers until no more than left are missing.
func (s *syncRun) settleTo(left int) error {
	s.settling = true
	defer func() { s.settling = false }()
	for len(s.waiting) > left {
		k := s.waiting[0]
		var a *remoteAnswer
		var err error
		for k.q.Do != "" {
			if err = s.sendWaiting(); err == nil {
				a, err = k.call.wait()
			}
			if s.ctx.Err() != nil {
				return errInterrupted
			}
			if !isConnError(err) {
				break
			}
			if err = s.reconnect(err); err != nil {
				return err
			}
		}
		if k.q.Do != "" {
			s.trouble = time.Time{}
		}
		s.waiting[0] = nil
		s.waiting = s.waiting[1:]
		if err := k.done(a, err); err != nil {
			return err
		}
	}
	return nil
}

// sendWaiting makes sure that the first request that waits is on its way, and the
// others with it.
func (s *syncRun) sendWaiting() error {
	if k := s.waiting[0]; k.call != nil {
		if k.turn == s.flushes {
			s.flushes++
			s.c.flush() // a connection that is lost shows when the answer is waited for
		}
		return nil
	}
	c, err := s.main()
	if err != nil {
		return err
	}
	s.c = c
	for _, k := range s.waiting {
		if k.q.Do != "" && k.call == nil {
			if k.call, err = c.begin(k.q, remoteHandlers{}); err != nil {
				return err
			}
			k.turn = s.flushes
		}
	}
	s.flushes++
	return c.flush()
}

// reconnect makes a lost connection again, as the engine does it for files.
func (s *syncRun) reconnect(lost error) error {
	for _, k := range s.waiting {
		k.call = nil
	}
	var said *verbError
	if s.engine.retry <= 0 || errors.As(lost, &said) {
		return lost
	}
	if s.trouble.IsZero() {
		s.trouble = time.Now()
		s.say("%v; trying again, for up to %v", lost, s.engine.retry)
	}
	for pause := cmp.Or(s.engine.pause, firstPause); ; pause = min(2*pause, lastPause) {
		if time.Since(s.trouble) > s.engine.retry {
			return lost
		}
		timer := time.NewTimer(pause)
		select {
		case <-s.ctx.Done():
			timer.Stop()
			return errInterrupted
		case <-timer.C:
		}
		c, err := s.main()
		if err == nil {
			s.c = c
			return nil
		}
		if lost = err; !isConnError(err) || errors.As(err, &said) {
			return err
		}
	}
}

// --- the plan ---

// plan looks at both trees, anew if the connection is lost meanwhile.
func (s *syncRun) plan() (*syncPlan, error) {
	for {
		p, err := s.tryPlan()
		if s.ctx.Err() != nil && err != nil {
			return nil, errInterrupted
		}
		if !isConnError(err) {
			return p, err
		}
		s.waiting = nil
		if err := s.reconnect(err); err != nil {
			return nil, err
		}
	}
}

func (s *syncRun) tryPlan() (*syncPlan, error) {
	c, err := s.main()
	if err != nil {
		return nil, err
	}
	s.c = c
	list := func(each func(line []byte) error) (*remoteAnswer, error) { return c.list(s.top, true, each) }
	a, err := c.do(remoteRequest{Do: "stat", Path: s.top})
	switch {
	case refusedFor(err, "not_found") && s.o.upload:
		s.fresh, list = true, nil
	case err != nil:
		return nil, errorf("%s on the box: %w", shownText(s.top), err)
	case a.Type != "dir":
		return nil, errorf("%s on the box is no directory; put and get are for files", shownText(s.top))
	}
	s.trouble = time.Time{}
	p, err := makePlan(s.o, s.root, list)
	if err != nil {
		return nil, err
	}
	if err := p.settleChecks(s.ctx, s, s.remotePath); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// --- doing it ---

// execute does what the plan says. An error is why it could not be gone on with; what
// failed for one name was said, and counts.
func (s *syncRun) execute(p *syncPlan) error {
	s.failed.Add(p.failed)
	err := p.notes.eachStep(func(_ int, a *syncStep) error {
		name := s.shown(a.name)
		if a.kind == stepSkip {
			s.say("%s: left out: %s", shownText(name), a.to)
		} else {
			s.warn("%s: %s", shownText(name), a.to)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// What is found to be a move and cannot be made is deleted after all.
	deletes, may := p.deletions(), s.o.delete
	switch {
	case deletes > 0 && p.blind:
		s.warn("nothing is deleted, as part of what is to be copied was not seen; %d would have been", deletes)
		may = false
	case s.o.maxDelete >= 0 && deletes > s.o.maxDelete:
		s.failed.Add(1)
		s.warn("nothing is deleted: it would be %d files and directories, and --max-delete allows %d", deletes, s.o.maxDelete)
		may = false
	}
	s.prog.expect(int64(p.transfers()), p.bytes)
	s.prog.known()
	if err := s.makeTop(); err != nil {
		return err
	}
	steps := []func() error{
		func() error { return s.apply(&p.dirs, nil) },
		func() error { return s.move(p) },
		func() error { return s.transfer(p) },
		func() error { return s.apply(&p.attrs, nil) },
	}
	if may {
		steps = []func() error{func() error { return s.apply(&p.clear, nil) }, steps[0], steps[1], steps[2],
			func() error { return s.apply(&p.gone, &p.movedGone) }, steps[3]}
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return errInterrupted
		}
	}
	return nil
}

// shown is a name as lines tell it.
//
//go:noinline
func (s *syncRun) shown(name string) string {
	if name == "" {
		return s.topIs
	}
	return joinName(s.base, name)
}

// makeTop makes the directory that the tree is to be in.
func (s *syncRun) makeTop() error {
	if !s.fresh {
		return nil
	}
	a := &syncStep{kind: stepMkdir}
	if s.o.all {
		a.flags |= stepSilent
	}
	switch {
	case s.o.dryRun:
	case s.o.upload:
		if err := s.ask(remoteRequest{Do: "mkdir", Path: s.top, Recursive: true}, func(_ *remoteAnswer, err error) error { return err }); err != nil {
			return err
		}
		if err := s.settle(); err != nil {
			return errorf("%s cannot be made on the box: %w", shownText(s.top), err)
		}
	default:
		err := os.MkdirAll(s.local, 0o777)
		if err == nil {
			s.root, err = os.OpenRoot(s.local)
		}
		if err != nil {
			return errorf("%s cannot be made: %w", shownText(s.local), localError(err))
		}
	}
	s.tell(a)
	return nil
}

// apply does steps that are no transfers.
func (s *syncRun) apply(list *spool, but *bitSet) error {
	err := list.eachStep(func(i int, a *syncStep) error {
		switch {
		case but != nil && but.has(i):
			return nil
		case s.ctx.Err() != nil:
			return errInterrupted
		case s.o.dryRun:
			s.did(a)
			return nil
		case s.inLost(a.name):
			s.failed.Add(1)
			return nil
		case s.o.upload:
			return s.applyThere(a)
		}
		s.ended(a, s.applyHere(a))
		return nil
	})
	if err != nil {
		return err
	}
	return s.settle()
}

// applyThere asks the box for a step.
func (s *syncRun) applyThere(a *syncStep) error {
	q := remoteRequest{Path: s.remotePath(a.name)}
	switch a.kind {
	case stepMkdir:
		q.Do, q.Recursive = "mkdir", true // it may have been made before the connection was lost
	case stepDelete, stepRmdir:
		q.Do = "remove"
	case stepAttrs:
		return s.attrsThere(a, a.name)
	}
	return s.ask(q, func(_ *remoteAnswer, err error) error {
		if q.Do == "remove" && refusedFor(err, "not_found") {
			err = nil
		}
		s.ended(a, err)
		return nil
	})
}

// attrsThere sets time and mode of a name on the box.
func (s *syncRun) attrsThere(a *syncStep, name string) error {
	var worst error
	note := func(_ *remoteAnswer, err error) error {
		if worst == nil {
			worst = err
		}
		return nil
	}
	if a.flags&stepTime != 0 {
		if err := s.ask(remoteRequest{Do: "touch", Path: s.remotePath(name), MTime: rfc3339(time.Unix(0, max(a.mtime, 0)))}, note); err != nil {
			return err
		}
	}
	if a.flags&stepMode != 0 {
		if err := s.ask(remoteRequest{Do: "chmod", Path: s.remotePath(name), Mode: modeBits(a.mode)}, note); err != nil {
			return err
		}
	}
	return s.ask(remoteRequest{}, func(*remoteAnswer, error) error {
		s.ended(a, worst)
		return nil
	})
}

// applyHere does a step on the disk.
func (s *syncRun) applyHere(a *syncStep) error {
	switch a.kind {
	case stepMkdir:
		err := s.root.Mkdir(a.name, 0o777)
		if errors.Is(err, fs.ErrExist) {
			if info, serr := s.root.Lstat(a.name); serr == nil && info.IsDir() {
				return nil
			}
		}
		return err
	case stepDelete, stepRmdir:
		if err := s.root.Remove(a.name); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	return s.attrsHere(a, a.name)
}

func (s *syncRun) attrsHere(a *syncStep, name string) error {
	if a.flags&stepTime != 0 {
		if err := s.root.Chtimes(name, time.Time{}, time.Unix(0, a.mtime)); err != nil {
			return err
		}
	}
	if a.flags&stepMode != 0 {
		return s.root.Chmod(name, fs.FileMode(a.mode&0o777))
	}
	return nil
}

// ended tells how a step ended.
func (s *syncRun) ended(a *syncStep, err error) {
	if err == nil {
		s.did(a)
		return
	}
	if a.kind == stepMkdir && len(s.lost) < syncLostDirs {
		s.lost = append(s.lost, a.name+"/")
	}
	if !s.o.upload {
		err = localError(err)
	}
	s.failed.Add(1)
	what := map[stepKind]string{stepMkdir: "cannot be made", stepDelete: "cannot be deleted", stepRmdir: "cannot be deleted", stepAttrs: "time and mode cannot be set", stepMove: "cannot be moved"}[a.kind]
	s.warn("%s: %s: %v", shownText(s.shown(a.name)), what, err)
}

// inLost tells whether a name is below a directory that could not be made.
func (s *syncRun) inLost(name string) bool {
	for _, dir := range s.lost {
		if beginsWith(name, dir) {
			return true
		}
	}
	return false
}

// did counts and tells a step that was done, or would be.
func (s *syncRun) did(a *syncStep) {
	switch a.kind {
	case stepDelete, stepRmdir:
		s.deleted.Add(1)
	case stepMove:
		s.moved.Add(1)
	}
	s.tell(a)
}

func (s *syncRun) tell(a *syncStep) {
	if a.flags&stepSilent != 0 {
		return
	}
	name := s.shown(a.name)
	r := progressResult{size: a.size}
	switch a.kind {
	case stepFile:
		r.action, r.from, r.to = "put", a.name, s.remotePath(a.name)
		if !s.o.upload {
			r.action, r.from, r.to = "get", r.to, r.from
		}
	case stepMkdir:
		r.action = "mkdir"
		name += "/"
	case stepMove:
		r.action, r.from, r.to = "move", name, s.shown(a.to)
	case stepDelete:
		r.action = "delete"
	case stepRmdir:
		r.action = "delete"
		name += "/"
	case stepAttrs:
		r.action = "chmod"
		if a.flags&stepTime != 0 {
			r.action = "touch"
		}
	}
	name = strings.TrimSuffix(name, "//")
	s.prog.begin(name, a.size).done(r)
}

// move renames what was found under another name. What cannot be renamed is transferred
// and deleted like the rest.
func (s *syncRun) move(p *syncPlan) error {
	undo := func(a *syncStep) {
		p.movedGone.set(int(a.old), false)
		p.movedFiles.set(int(a.new), false)
		s.prog.expect(1, a.size)
	}
	err := p.moves.eachStep(func(_ int, a *syncStep) error {
		switch {
		case s.ctx.Err() != nil:
			return errInterrupted
		case s.o.dryRun:
			s.did(a)
			return nil
		case s.o.upload:
			return s.ask(remoteRequest{Do: "move", Path: s.remotePath(a.name), To: s.remotePath(a.to)}, func(_ *remoteAnswer, err error) error {
				if err != nil {
					undo(a)
					return nil
				}
				return s.attrsThere(a, a.to)
			})
		}
		if err := s.root.Rename(a.name, a.to); err != nil {
			undo(a)
			return nil
		}
		s.ended(a, s.attrsHere(a, a.to))
		return nil
	})
	if err != nil {
		return err
	}
	return s.settle()
}

// transfer sends or fetches files.
func (s *syncRun) transfer(p *syncPlan) error {
	if s.o.dryRun {
		return p.files.eachStep(func(i int, a *syncStep) error {
			if !p.movedFiles.has(i) {
				s.sent.Add(1)
				s.bytes.Add(a.size)
				s.tell(a)
			}
			return nil
		})
	}
	if p.transfers() == 0 {
		return nil
	}
	var taken atomic.Bool
	e := newEngine(s.ctx, s.engine, func() (*remote, error) {
		if taken.CompareAndSwap(false, true) {
			return s.main()
		}
		return s.other()
	}, s.prog)
	e.release = s.release
	err := p.files.eachStep(func(i int, a *syncStep) error {
		switch {
		case p.movedFiles.has(i):
			return nil
		case s.ctx.Err() != nil:
			return errInterrupted
		case s.inLost(a.name):
			s.failed.Add(1)
			return nil
		}
		j := &transferJob{put: s.o.upload, local: a.name, root: s.root, remote: s.remotePath(a.name), size: a.size, setTime: a.flags&stepTime != 0, setMode: a.flags&stepMode != 0,
			// A small file is sent sooner than both sides have agreed about it.
			resume: a.size > smallFile, name: s.shown(a.name), action: "get", done: s.transferred}
		if s.o.upload {
			j.action, j.mode = "put", a.mode
			if a.mtime < 0 { // else it is the file's own when it is read
				j.mtime = time.Unix(0, 0)
			}
		}
		if s.o.all {
			j.action, j.resume = "", s.o.resume
		}
		e.add(j)
		return nil
	})
	if cerr := e.close(); cerr != nil && (cerr.Error() != "" || err == nil) {
		var said *verbError
		if errors.As(cerr, &said) && said.text == "" && said.code == exitFailed {
			return err // each was said, and counted
		}
		err = cerr
	}
	return err
}

// transferred is how a file ended; workers call it.
func (s *syncRun) transferred(r jobResult) {
	if r.err != nil {
		s.failed.Add(1)
		return
	}
	s.sent.Add(1)
	s.bytes.Add(r.bytes)
}

// --- the verb ---

// syncSummary is the last line of a sync.
type syncSummary struct {
	Verb      string `json:"verb"`
	Summary   bool   `json:"summary"`
	DryRun    bool   `json:"dry_run,omitempty"`
	Files     int64  `json:"files"`
	Bytes     int64  `json:"bytes"`
	Moved     int64  `json:"moved"`
	Deleted   int64  `json:"deleted"`
	Unchanged int64  `json:"unchanged"`
	Skipped   int64  `json:"skipped"`
	Failed    int64  `json:"failed"`
}

func (s *syncRun) summary(p *syncPlan) syncSummary {
	return syncSummary{Verb: "sync", Summary: true, DryRun: s.o.dryRun, Files: s.sent.Load(), Bytes: s.bytes.Load(), Moved: s.moved.Load(), Deleted: s.deleted.Load(),
		Unchanged: p.unchanged, Skipped: p.skipped, Failed: s.failed.Load()}
}

// line is the summary for people.
func (m *syncSummary) line(upload bool) string {
	what := "received"
	if upload {
		what = "sent"
	}
	if m.DryRun {
		what = map[string]string{"sent": "would send", "received": "would receive"}[what]
	}
	files := "files"
	if m.Files == 1 {
		files = "file"
	}
	left := ""
	if m.Skipped > 0 {
		left = fmt.Sprintf(", %d left out", m.Skipped)
	}
	return fmt.Sprintf("%s %d %s, %s; %d moved, %d deleted, %d unchanged%s; %d failed", what, m.Files, files, humanBytes(m.Bytes), m.Moved, m.Deleted, m.Unchanged, left, m.Failed)
}

// syncRules are --exclude and --include in the order in which they were given.
func (inv *invocation) syncRules() (treeRules, error) {
	var rules treeRules
	for _, g := range inv.given {
		if g.name != "exclude" && g.name != "include" {
			continue
		}
		r, err := parseTreeRule(g.name == "include", g.value)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// noTerminal hides what a writer is: a dry run has lines, not bars.
type noTerminal struct{ io.Writer }

// runSync is the verb.
func runSync(inv *invocation) error {
	rules, err := inv.syncRules()
	if err != nil {
		return err
	}
	src, err := inv.place(inv.args[0])
	if err != nil {
		return err
	}
	dst, err := inv.place(inv.args[1])
	if err != nil {
		return err
	}
	if src.box != nil && dst.box != nil {
		return usageErr("both are on a box; one of the two has to be here")
	}
	if src.box == nil && dst.box == nil {
		return usageErr("one of the two has to be on a box, as HOST:%s, and the other here", shownText(strings.TrimPrefix(inv.args[1], "/")))
	}
	s := &syncRun{ctx: inv.ctx, o: syncOptions{upload: dst.box != nil, delete: inv.on("delete"), maxDelete: -1, rules: rules, dryRun: inv.on("dry-run"),
		checksum: inv.on("checksum"), preserve: inv.on("preserve"), window: inv.period("modify-window")}}
	if inv.on("max-delete") {
		s.o.maxDelete = inv.number("max-delete")
	}
	b := src.box
	if s.o.upload {
		b, dst.path = dst.box, dst.plain()
	} else {
		src.path = src.plain()
	}
	s.main, s.other, s.release = b.main, b.another, b.release
	jobs := b.spec.jobs
	if inv.on("jobs") {
		jobs = inv.number("jobs")
	}
	s.engine = engineOptions{verb: "sync", jobs: jobs, rate: inv.bytes("limit-rate"), retry: inv.period("retry"), stdin: inv.stdin, stdout: inv.stdout}
	if err := s.places(src.path, dst.path, inv.args[1]); err != nil {
		return err
	}
	defer func() {
		if s.root != nil {
			s.root.Close()
		}
	}()
	stderr := inv.stderr
	if s.o.dryRun {
		stderr = noTerminal{stderr}
	}
	s.prog = newProgress(progressOptions{stdout: inv.stdout, stderr: stderr, quiet: inv.on("quiet"), json: inv.on("json"), verbose: inv.on("verbose"), verb: "sync", jobs: s.engine.jobs})
	defer s.prog.stop(false)
	m, err := s.sync()
	s.prog.stop(inv.ctx.Err() != nil)
	if interrupted := inv.ctx.Err() != nil; (interrupted || isConnError(err)) && !inv.on("quiet") && !s.o.dryRun {
		defer fmt.Fprintf(inv.stderr, "berth sync: to go on with what is there: %s\n", inv.again())
		if interrupted {
			return exitWith(exitInterrupted)
		}
	}
	switch {
	case m == nil:
		return err
	case inv.on("json"):
		line, _ := json.Marshal(m) // strings and numbers cannot fail
		fmt.Fprintf(inv.stdout, "%s\n", line)
	case !inv.on("quiet"):
		fmt.Fprintln(inv.stdout, m.line(s.o.upload))
	}
	switch {
	case err != nil:
		return err
	case m.Failed > 0:
		return exitWith(exitFailed)
	case s.prog.lost() != nil:
		return localError(s.prog.lost())
	}
	return nil
}

// sync makes the plan and follows it. Without a plan there is no summary.
func (s *syncRun) sync() (*syncSummary, error) {
	p, err := s.plan()
	if err != nil {
		return nil, err
	}
	defer p.close()
	s.prog.start()
	err = s.execute(p)
	s.prog.stop(s.ctx.Err() != nil)
	m := s.summary(p)
	return &m, err
}

// places finds out what is synced with what. As with rsync, a source without a slash
// behind it is itself what comes into the destination, with its name.
func (s *syncRun) places(src, dst, typed string) error {
	s.topIs = typed
	whole := func(p, base string) bool {
		return p != "" && !strings.HasSuffix(p, "/") && base != "." && base != ".." && base != "/"
	}
	if s.o.upload {
		s.local, s.top = src, dst
		base := filepath.Base(src)
		if whole(src, base) {
			s.base, s.topIs = base, base
			s.top = joinRemote(dst, base)
		}
		root, err := os.OpenRoot(src)
		if err != nil {
			if info, serr := os.Stat(src); serr == nil && !info.IsDir() {
				return errorf("%s is no directory; sync makes one directory like another, put sends files", shownText(src))
			}
			return errorf("%s: %w", shownText(src), localError(err))
		}
		s.root = root
		return nil
	}
	s.top, s.local = src, dst
	if base := baseName(src); whole(src, base) {
		s.base, s.topIs = base, base
		s.local = joinPath(dst, base)
	}
	root, err := os.OpenRoot(s.local)
	switch {
	case err == nil:
		s.root = root
	case errors.Is(err, fs.ErrNotExist):
		s.fresh = true
	default:
		if info, serr := os.Stat(s.local); serr == nil && !info.IsDir() {
			return errorf("%s is no directory, so there is no place for what is on the box", shownText(s.local))
		}
		return errorf("%s: %w", shownText(s.local), localError(err))
	}
	return nil
}
