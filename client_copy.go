// client_copy.go is get, put and cat as people type them: which names are meant, what
// each is called on the other side, and jobs for the engine of them. Directories go
// the way of sync, which plans them in bounded memory. It is apart from
// client_files.go because it is about two sides.

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// A copying is a running get, put, cat or sync: one box, its engine and what is seen
// of it.
type copying struct {
	inv    *invocation
	box    *box
	prog   *progress
	engine *engine
	worst  error
}

// copying prepares to move files between here and b; toStdout says that standard
// output is for a file's content.
func (inv *invocation) copying(b *box, toStdout bool) *copying {
	jobs := b.spec.jobs
	if inv.str("jobs") != "" {
		jobs = inv.number("jobs")
	}
	retry := defaultRetry
	if inv.str("retry") != "" {
		retry = inv.period("retry")
	}
	x := &copying{inv: inv, box: b}
	x.prog = newProgress(progressOptions{stdout: inv.stdout, stderr: inv.stderr, quiet: inv.on("quiet") || inv.verb.name == "cat",
		json: inv.on("json"), verbose: inv.on("verbose"), dataOnStdout: toStdout, verb: inv.verb.name, jobs: jobs})
	first := true
	x.engine = newEngine(inv.ctx, engineOptions{verb: inv.verb.name, jobs: jobs, rate: inv.bytes("limit-rate"), retry: retry, pause: inv.pause,
		stdin: inv.stdin, stdout: inv.stdout},
		func() (*remote, error) {
			x.engine.mu.Lock()
			mine := first
			first = false
			x.engine.mu.Unlock()
			if mine {
				return b.main()
			}
			return b.another()
		}, x.prog)
	x.engine.release = b.release
	return x
}

// job is a job with what the command line says of all of them.
//
//go:noinline
func (x *copying) job(put bool, local, remote, name string) *transferJob {
	keep := x.inv.on("preserve")
	return &transferJob{put: put, local: local, remote: remote, name: name, size: -1, resume: x.inv.on("continue"), setMode: keep, setTime: keep}
}

// tree moves a directory with all that is in it, by a plan as a sync has one. name is
// what it is called in lines.
func (x *copying) tree(put bool, local, remote, name string) error {
	s := &syncRun{ctx: x.inv.ctx, main: x.box.main, other: x.box.another, release: x.box.release, engine: x.engine.o, prog: x.prog, local: local, top: remote, base: name, topIs: name,
		o: syncOptions{upload: put, maxDelete: -1, preserve: x.inv.on("preserve"), all: true, resume: x.inv.on("continue")}}
	root, err := os.OpenRoot(local)
	switch {
	case err == nil:
		s.root = root
	case errors.Is(err, fs.ErrNotExist) && !put:
		s.fresh = true
	default:
		return localError(err)
	}
	defer func() {
		if s.root != nil {
			s.root.Close()
		}
	}()
	p, err := s.plan()
	if err != nil {
		return err
	}
	defer p.close()
	if err := s.execute(p); err != nil {
		return err
	}
	if s.failed.Load() > 0 && x.worst == nil {
		x.worst = exitWith(exitFailed)
	}
	return nil
}

// getTree fetches what p is if it is a directory; done: it was.
func (x *copying) getTree(p place, local string) (done bool, err error) {
	var a *remoteAnswer
	err = x.inv.patiently(x.box, func(c *remote) (err error) {
		a, err = c.do(remoteRequest{Do: "stat", Path: p.path})
		return err
	})
	if err != nil || a.Type != "dir" {
		return false, err
	}
	name := baseName(path.Clean("/" + p.path))
	return true, x.tree(false, local, p.path, strings.TrimPrefix(name, "/"))
}

// fail says what is wrong with one name; the others go on.
func (x *copying) fail(name string, err error) {
	if name != "" {
		name = shownText(name) + ": "
	}
	if errors.Is(err, errInterrupted) {
		return
	}
	if x.worst == nil {
		x.worst = err
	}
	if err.Error() == "" { // it was said
		return
	}
	x.prog.warn("berth %s: %s%v", x.inv.verb.name, name, err)
}

// end waits for everything and says how it ended; how to go on, too, if it may.
func (x *copying) end() error {
	err := x.engine.close()
	if err == nil && isConnError(x.worst) {
		err = exitWith(exitNoConn)
	}
	interrupted := x.inv.ctx.Err() != nil
	x.prog.stop(interrupted)
	x.engine.mu.Lock()
	left := x.engine.left
	x.engine.mu.Unlock()
	if interrupted && err == nil {
		err = errInterrupted
	}
	if err == errInterrupted || exitCode(err) == exitNoConn && x.box.met() {
		// What came by standard input or went to standard output is not there any more.
		if !x.inv.on("quiet") && x.inv.verb.name != "cat" && !inList(x.inv.args, "-") {
			if left > 0 && !interrupted {
				fmt.Fprintf(x.inv.stderr, "berth %s: files that were not moved: %d\n", x.inv.verb.name, left)
			}
			fmt.Fprintf(x.inv.stderr, "berth %s: to go on with what is there: %s\n", x.inv.verb.name, x.inv.again())
		}
		if err == errInterrupted {
			return exitWith(exitInterrupted)
		}
	}
	if lost := x.prog.lost(); err == nil && lost != nil {
		err = localError(lost)
	}
	if err == nil && x.worst != nil {
		err = exitWith(exitCode(x.worst))
	}
	return err
}

// exitInterrupted is what a shell tells of a program that SIGINT ended.
const exitInterrupted = 130

// again is the command line that goes on with an interrupted one.
func (inv *invocation) again() string {
	words := []string{"berth", inv.verb.name}
	if inv.verb.name != "sync" && !inv.on("continue") {
		words = append(words, "-c")
	}
	for _, o := range inv.given {
		word := "--" + o.name
		for i := range inv.verb.options {
			if inv.verb.options[i].name == o.name && inv.verb.options[i].arg != "" {
				word += "=" + shellQuote(o.value)
			}
		}
		words = append(words, word)
	}
	for _, a := range inv.args {
		if t, err := parseTarget(a); err == nil && t.password != "" {
			a = t.typed // without it
		}
		words = append(words, shellQuote(a))
	}
	return strings.Join(words, " ")
}

// --- get ---

func runGet(inv *invocation) error {
	words, target := inv.args, "."
	if last := len(words) - 1; last > 0 {
		p, err := inv.getTarget(words[last])
		if err != nil {
			return err
		}
		if p != "" {
			words, target = words[:last], p
		}
	}
	return inv.fetchTo(words, target)
}

// getTarget is the last word of a get if it is a name here; empty if it is one more
// name on the box.
func (inv *invocation) getTarget(word string) (string, error) {
	if inv.within != nil {
		return word, nil // ftp(1)'s get: the name there, the name here
	}
	t, err := parseTarget(word)
	if err != nil || t.remote {
		return "", err
	}
	return word, nil
}

// fetchTo fetches what the words stand for.
func (inv *invocation) fetchTo(words []string, target string) error {
	first, err := inv.remotePlace(words[0])
	if err != nil {
		return err
	}
	x := inv.copying(first.box, target == "-")
	var places []place
	for _, word := range words {
		p, err := inv.remotePlace(word)
		if err != nil {
			return err
		}
		if p.box != first.box {
			return usageErr("%s and %s are on different boxes; one at a time", shownText(first.shown), shownText(p.shown))
		}
		some, err := inv.expand(p)
		if err != nil {
			if exitCode(err) != exitFailed || inv.ctx.Err() != nil {
				return err
			}
			x.fail("", err)
			continue
		}
		places = append(places, some...)
	}
	if len(places) == 0 {
		return x.end()
	}
	into := false
	if target != "-" {
		info, err := os.Stat(target)
		switch {
		case err == nil && info.IsDir():
			into = true
		case strings.HasSuffix(target, "/"):
			if err := os.MkdirAll(target, 0o777); err != nil {
				return &verbError{exitFailed, fmt.Sprintf("%s: %v", shownText(target), localError(err))}
			}
			into = true
		case len(places) > 1:
			return &verbError{exitFailed, fmt.Sprintf("%s is not a directory here, and only a directory can take %d files; mkdir it first", shownText(target), len(places))}
		}
	}
	x.prog.start()
	for _, p := range places {
		name := baseName(path.Clean("/" + p.path))
		local := target
		if into && name != "/" {
			if why := badRemoteName(name); why != "" {
				x.fail(p.shown, errors.New(why))
				continue
			}
			local = joinPath(target, name)
		}
		if inv.on("recursive") {
			if done, err := x.getTree(p, local); done || err != nil {
				if err != nil {
					x.fail(p.shown, err)
				}
				continue
			}
		} else if name == "/" {
			x.fail(p.shown, errors.New("is a directory; -r fetches it with all that is in it"))
			continue
		}
		x.engine.add(x.job(false, local, p.path, name))
	}
	x.prog.known()
	return x.end()
}

// --- put ---

func runPut(inv *invocation) error {
	words, target := inv.args, ""
	if last := len(words) - 1; last > 0 {
		words, target = words[:last], words[last]
	}
	var to place
	var err error
	switch {
	case inv.within != nil:
		to, err = inv.remotePlace(target)
	case target == "":
		to, err = inv.hostPlace("")
	default:
		if to, err = inv.place(target); err == nil && to.box == nil {
			if t, ok, derr := defaultTarget(); derr == nil && ok {
				t.path = joinRemote(t.path, target)
				to, err = inv.at(t, target)
			} else {
				err = cmpErr(derr, usageErr("where to? the last word, %s, names no box; write it as HOST:%s", configQuote(target), shownText(target)))
			}
		}
	}
	if err != nil {
		return err
	}
	to.path = to.plain()
	names, err := inv.localNames(words)
	if err != nil {
		return err
	}
	into := to.path == "" || strings.HasSuffix(to.path, "/")
	err = inv.patiently(to.box, func(c *remote) error {
		a, err := c.do(remoteRequest{Do: "stat", Path: to.path})
		switch {
		case err == nil && into && a.Type != "dir":
			return &verbError{exitFailed, fmt.Sprintf("%s: there is a file of that name, and no directory", shownText(to.shown))}
		case err == nil:
			into = into || a.Type == "dir"
		case refusedFor(err, "not_found") && into:
			_, err = c.do(remoteRequest{Do: "mkdir", Path: to.path, Recursive: true})
			return err
		case refusedFor(err, "denied"), refusedFor(err, "not_found"): // may write and not list: the put will tell
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	if len(names) > 1 && !into {
		return &verbError{exitFailed, fmt.Sprintf("%s is not a directory on the box, and only a directory can take %d files; make it with berth mkdir, or write a / behind it", shownText(to.shown), len(names))}
	}
	x := inv.copying(to.box, false)
	x.prog.start()
	for _, name := range names {
		remote := to.path
		base := filepath.Base(name)
		if into && name != "-" && base != "." && base != ".." && base != "/" {
			remote = joinRemote(remote, base)
		}
		if name == "-" && into {
			x.fail("standard input", usageErr("what is it to be called? write HOST:NAME"))
			continue
		}
		if info, err := os.Stat(name); err == nil && info.IsDir() && name != "-" {
			if !inv.on("recursive") {
				x.fail(name, errors.New("is a directory; -r sends it with all that is in it"))
				continue
			}
			shown := base
			if base == "." || base == ".." || base == "/" {
				shown = ""
			}
			if err := x.tree(true, name, remote, shown); err != nil {
				x.fail(name, err)
			}
			continue
		} else if err == nil {
			x.prog.expect(1, info.Size())
		}
		shown := name
		if name == "-" {
			shown = baseName(remote)
		}
		x.engine.add(x.job(true, name, remote, shown))
	}
	x.prog.known()
	return x.end()
}

// localNames is what the words stand for here. The shell has expanded patterns
// already; what is left of them was quoted, or came from berth's own prompt.
func (inv *invocation) localNames(words []string) ([]string, error) {
	var names []string
	for _, word := range words {
		if t, err := parseTarget(word); err == nil && t.remote && inv.within == nil {
			if _, err := os.Lstat(word); errors.Is(err, fs.ErrNotExist) {
				return nil, usageErr("%s is on a box already; put takes files from here, get fetches them", shownText(t.typed))
			}
		}
		if _, err := os.Lstat(word); err != nil && word != "-" && hasPattern(word) {
			if found, err := filepath.Glob(word); err == nil && len(found) > 0 {
				names = append(names, found...)
				continue
			}
		}
		names = append(names, word)
	}
	return names, nil
}
