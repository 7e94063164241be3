// sources.go is what the metrics and the status page ask of the server: who stores
// how much, what the ledger knows, what waits for what. It is apart from server.go
// because all of it answers at once, from memory, whatever its disks do: a scrape
// must not hang with a home whose file server is gone.

package main

import (
	"errors"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lookPatience is how long a question to a disk may hold up a scrape. A disk that
// answers at all does so within milliseconds.
const lookPatience = 200 * time.Millisecond

// A patientLook asks a disk that may not answer, on a goroutine that can be left
// behind. There is one for each question, and never a second one as long as the first
// has not ended; so a disk that hangs costs one goroutine and one wait.
type patientLook struct {
	mu      mutex
	running chan struct{} // closed when it has ended; nil: none runs
	since   time.Time
	result  error // of the last one that ended

	grace time.Duration // for which it may run on; fixed before the first
}

// do runs look and waits for it, or for the one that runs already, until that has
// taken lookPatience. done is false if it has not ended then, and has no grace left.
func (p *patientLook) do(look func() error) (result error, done bool) {
	p.mu.Lock()
	if p.running == nil {
		p.running, p.since = make(chan struct{}), time.Now()
		go func() {
			result := look()
			p.mu.Lock()
			defer p.mu.Unlock()
			p.result = result
			close(p.running)
			p.running = nil
		}()
	}
	running, took := p.running, time.Since(p.since)
	p.mu.Unlock()
	t := time.NewTimer(max(lookPatience-took, 0))
	defer t.Stop()
	select {
	case <-running:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.result, true
	case <-t.C:
		return nil, took < p.grace
	}
}

// metricSources is all that a scrape asks.
func (s *server) metricSources(cfg *config) metricSources {
	return metricSources{
		Anonymous:         !cfg.Metrics.PerUser,
		LoginReasons:      loginReasons,
		Usage:             s.usage,
		IsUser:            s.users.isKnown,
		StateFree:         s.stateFree,
		CertificateExpiry: s.keys.notAfter,
		Bans:              func() int { return s.auth.bans() },
		UploadHooks:       func() int { return s.hooks.len() },
		Passive:           func() passiveUsage { return passiveUsage(s.ports.report(s.config().Passive.Ports)) },
		Homes:             s.homeStates,
		Partials:          s.partials,
		HashQueue:         func() int { return s.auth.waiting() },
		DigestQueue:       func() int { return int(s.digestQueue.Load()) },
		Staging:           s.jails.staged.Load,
		Draining: func() int {
			if s.drainAt.Load() != 0 {
				return 1
			}
			return 0
		},
	}
}

// tellCommands tells the metrics of commands that have yet to run.
func (s *server) tellCommands() {
	s.metrics.commandKnown(shellName)
	for name := range s.config().Commands {
		s.metrics.commandKnown(name)
	}
}

// usage is what the quota metrics show: every user whose files are counted, by name.
func (s *server) usage() []userUsage {
	s.lookUsers.do(func() error { s.users.refresh(); return nil }) // else who is new is known at his login, or in a minute
	var all []userUsage
	for _, u := range s.users.current.Load().sorted() {
		if u.Quota == "filesystem" {
			continue
		}
		line := userUsage{Name: u.Name, QuotaBytes: int64(u.QuotaBytes), QuotaFiles: u.QuotaFiles, Rotates: u.WhenFull == "rotate"}
		if b := s.jails.ledger.user(u.Name); b != nil {
			line.UsedBytes, line.UsedFiles, line.Known = b.usage()
		} else {
			line.Known = s.house.homeless(u) // who has no home stores nothing
		}
		if !line.Known {
			line.UsedBytes, line.UsedFiles = 0, 0
		}
		all = append(all, line)
	}
	return all
}

// homeStates counts the homes that quotas need the size of. Several users can share one.
func (s *server) homeStates() (n homeStates) {
	const unknown, scanning, known = 0, 1, 2
	states := map[string]int{}
	s.users.known(func(u *user) {
		if u.Quota == "filesystem" {
			return
		}
		state := unknown
		switch _, _, counted := s.jails.ledger.user(u.Name).usage(); {
		case counted || u.Disabled || s.house.homeless(u): // a disabled user's home is left alone
			state = known
		case s.house.counting(u.Name):
			state = scanning
		}
		states[u.Home] = max(states[u.Home], state)
	})
	for _, state := range states {
		switch state {
		case known:
			n.Known++
		case scanning:
			n.Scanning++
		default:
			n.Unknown++
		}
	}
	return n
}

// freeSpace is what is known of the state directory's disk.
type freeSpace struct {
	bytes    uint64
	err      error
	readOnly error // why nothing can be written there; nil if it can
}

var errNoAnswer = errors.New("the disk does not answer")

// lookState looks at the state directory; done is false if its disk hangs: it does not
// tell its size, or has not let a write pass for stuckAfter. What is tried is to remove a
// name that nobody has: that writes nothing, and yet waits as a write does where the file
// system is frozen (fsfreeze(8), a snapshot).
func (s *server) lookState() (free freeSpace, done bool) {
	if _, done = s.lookFree.do(func() error {
		dir := s.config().Server.StateDir
		f := new(freeSpace)
		f.bytes, f.err = freeBytes(dir)
		f.readOnly = unix.Access(dir, unix.W_OK|unix.X_OK) // which writes nothing
		s.free.Store(f)
		unix.Unlink(filepath.Join(dir, reservedPrefix+"none"))
		return nil
	}); done {
		f := s.free.Load()
		if f == nil {
			return free, false
		}
		free = *f
	}
	return free, done && s.jails.ledger.stuck() < stuckAfter
}

// stateFree is how much may be written where the state directory is.
func (s *server) stateFree() (uint64, error) {
	free, done := s.lookState()
	if !done {
		return 0, errNoAnswer
	}
	return free.bytes, free.err
}

func freeBytes(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// partials is how many interrupted uploads there are, as far as homes were looked at.
func (s *server) partials() (n int, oldest time.Time, known bool) {
	return s.jails.partials.report(s.users.isKnown)
}

// --- what housekeeping tells ---

// homeless tells whether a user's home was not there when it was last looked for.
func (h *housekeeper) homeless(u *user) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	home, none := h.noHome[u.Name]
	return none && home == u.Home
}

// counting tells whether a user's home is being swept just now, and gets on.
func (h *housekeeper) counting(user string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.walking[user] > 0
}

// walks notes that a sweep of a user's home begins (by 1), or ends or is given up.
func (h *housekeeper) walks(user string, by int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.walking[user] += by; h.walking[user] <= 0 {
		delete(h.walking, user)
	}
}
