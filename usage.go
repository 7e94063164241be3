// usage.go is what users store, for the operator: the request quotas, which the daemon
// answers from its ledger, and berth user usage, which asks it, or reads what a daemon
// that has ended left. It is apart from ledger.go, which counts and is asked by
// everybody, because it is asked by people: it must tell what it does not know, and
// answer although some home's disk does not.

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// usagePatience is how long one home's disk may take to answer; after that the
// others are not asked for this time.
const usagePatience = 2 * time.Second

// What is known of a home. The words are part of the protocol.
const (
	usageCounted    = "counted"
	usageCounting   = "counting"
	usageUnknown    = "unknown"
	usageElsewhere  = "elsewhere" // another berth counts it, and no user of it gets in here
	usageFilesystem = "filesystem"
)

// A usageLine is what one user stores and may.
type usageLine struct {
	User       string   `json:"user"`
	State      string   `json:"state"`
	Exact      bool     `json:"exact"`
	Bytes      int64    `json:"bytes"`
	Files      int64    `json:"files"`
	QuotaBytes int64    `json:"quota_bytes"`
	QuotaFiles int64    `json:"quota_files"`
	Percent    *float64 `json:"percent,omitempty"`
	Home       string   `json:"home"`
}

func newUsageLine(u *user) *usageLine {
	return &usageLine{User: u.Name, State: usageUnknown, QuotaBytes: int64(u.QuotaBytes), QuotaFiles: u.QuotaFiles, Home: u.Home}
}

// counted takes over what a ledger has.
func (l *usageLine) counted(bytes, files int64, exact bool) {
	l.State, l.Bytes, l.Files, l.Exact = usageCounted, bytes, files, exact
}

// look asks the disk what no ledger tells: how full a file system is, or that a home
// is not there, in which nothing is stored.
func (l *usageLine) look(kernel bool) {
	if !kernel {
		if _, err := os.Stat(l.Home); errors.Is(err, fs.ErrNotExist) {
			l.counted(0, 0, true)
		}
		return
	}
	var st unix.Statfs_t
	err := unix.Statfs(l.Home, &st)
	if err == unix.ENOENT { // it is made at the first login
		err = unix.Statfs(filepath.Dir(l.Home), &st)
	}
	if err == nil {
		l.State, l.Exact = usageFilesystem, true
		l.QuotaBytes, l.QuotaFiles = int64(st.Blocks)*int64(st.Bsize), int64(st.Files)
		// What only root may still use is as good as used.
		l.Bytes, l.Files = l.QuotaBytes-int64(st.Bavail)*int64(st.Bsize), int64(st.Files-st.Ffree)
	}
}

// told is whether anything is known.
func (l *usageLine) told() bool { return l.State == usageCounted || l.State == usageFilesystem }

// share is how much of the fuller of both quotas is used, in percent with one digit.
//
//go:noinline
func (l *usageLine) share() *usageLine {
	if !l.told() || l.QuotaBytes <= 0 && l.QuotaFiles <= 0 {
		return l
	}
	most := 0.0
	if l.QuotaBytes > 0 {
		most = float64(l.Bytes) / float64(l.QuotaBytes)
	}
	if l.QuotaFiles > 0 {
		most = max(most, float64(l.Files)/float64(l.QuotaFiles))
	}
	most = float64(int64(most*1000)) / 10 // down: 100 is full and nothing before it
	l.Percent = &most
	return l
}

// doQuotas tells what every user stores, or one.
func (s *session) doQuotas(q *request) error {
	all := s.srv.users.all()
	if q.User != nil {
		u := s.srv.users.get(*q.User)
		if u == nil {
			s.answer(&answer{Code: codeDenied, Reason: "not_found", Text: "There is no user " + *q.User + "."})
			return nil
		}
		all = []*user{u}
	}
	hung := false
	return s.lines(func(w io.Writer) error {
		for _, u := range all {
			l := newUsageLine(u)
			b := s.srv.jails.ledger.user(u.Name)
			if kernel := u.Quota == "filesystem"; kernel || b == nil {
				if !kernel && s.srv.jails.ledger.elsewhere(u.Home) {
					l.State = usageElsewhere
				} else if !hung {
					l, hung = lookPatiently(l, kernel)
				}
			} else {
				b.mu.Lock()
				if l.State = usageCounting; b.known {
					l.counted(b.bytes, b.files, b.exact)
				}
				b.mu.Unlock()
			}
			if _, err := w.Write(append(encodeJSON(l.share()), '\n')); err != nil {
				return err
			}
		}
		return nil
	})
}

// lookPatiently is look on a goroutine that can be left behind, as one that asks a file
// server that is gone. The line that it works on is its own then.
func lookPatiently(l *usageLine, kernel bool) (result *usageLine, hung bool) {
	looked := make(chan *usageLine, 1)
	go func(l usageLine) {
		l.look(kernel)
		looked <- &l
	}(*l)
	t := time.NewTimer(usagePatience)
	defer t.Stop()
	select {
	case result = <-looked:
		return result, false
	case <-t.C:
		return l, true
	}
}

// --- berth user usage ---

// usage asks the running daemon, whose figures are exact; where none runs it reads the
// ledger that the last one left, and says so.
func (c *userCommand) usage() error {
	lines, err := c.askUsage()
	if errors.Is(err, errNoDaemon) {
		lines, err = c.readUsage()
	}
	if err != nil {
		return err
	}
	if c.sort == "used" {
		sort.SliceStable(lines, func(i, j int) bool { return lines[i].Bytes > lines[j].Bytes })
	}
	if c.json {
		return c.printJSON(lines)
	}
	rows := [][]string{{"USER", "USED", "QUOTA", "USE%", "FILES", "QUOTA", "USE%", "STATE"}}
	for _, l := range lines {
		used, files, state := humanBytes(l.Bytes), strconv.FormatInt(l.Files, 10), l.State
		switch {
		case !l.told():
			used, files = "-", "-"
		case !l.Exact:
			state += ", in doubt"
		}
		switch l.State {
		case usageCounting:
			state = "being counted"
		case usageElsewhere:
			state = "counted by another berth"
		}
		rows = append(rows, []string{l.User, used, quotaCell(l.QuotaBytes, humanBytes), usePercent(used, l.Bytes, l.QuotaBytes),
			files, quotaCell(l.QuotaFiles, func(n int64) string { return strconv.FormatInt(n, 10) }), usePercent(files, l.Files, l.QuotaFiles), state})
	}
	_, err = io.WriteString(c.stdout, columns(rows))
	return err
}

func quotaCell(n int64, text func(int64) string) string {
	if n <= 0 {
		return "-"
	}
	return text(n)
}

func usePercent(used string, n, quota int64) string {
	if used == "-" || quota <= 0 {
		return "-"
	}
	return strconv.FormatInt(int64(float64(n)/float64(quota)*100), 10) + "%"
}

var errNoDaemon = errors.New("no daemon runs")

func (c *userCommand) askUsage() (lines []*usageLine, err error) {
	if len(c.local) == 0 {
		return nil, errNoDaemon
	}
	d, err := dialDaemon(c.local[0])
	if err != nil {
		return nil, err
	}
	defer d.close()
	request := map[string]any{"do": "quotas"}
	if c.name != "" {
		request["user"] = c.name
	}
	lines = []*usageLine{}
	_, err = d.ask(request, func(line []byte) error {
		l := &usageLine{}
		lines = append(lines, l)
		return json.Unmarshal(line, l)
	})
	return lines, err
}

// readUsage is askUsage without a daemon.
func (c *userCommand) readUsage() (lines []*usageLine, err error) {
	set, errs := c.users.readAll()
	all := set.sorted()
	if c.name != "" {
		e := set.entries[c.name]
		if e == nil || e.user == nil {
			return nil, errorf("there is no user %q in %s", c.name, c.users.dir)
		}
		all = []*user{e.user}
	}
	file := joinPath(c.users.stateDir, ledgerName)
	entries, clean, err := readLedger(file)
	note := "berth does not run: these are the figures that it left"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		note = "berth does not run, and left no ledger: nothing was counted yet"
	case err != nil:
		return nil, errorf("%s: %w", file, err)
	case !clean:
		note = "no berth is heard on its local socket, and none ended in order: these are the figures that were last saved, and may be off"
	}
	fmt.Fprintf(c.stderr, "berth user: %s\n", note)
	byHome := map[string]ledgerEntry{}
	for _, e := range entries {
		byHome[e.Home] = e
	}
	lines = []*usageLine{}
	for _, u := range all {
		l := newUsageLine(u)
		if e, ok := byHome[u.Home]; ok && u.Quota != "filesystem" {
			l.counted(e.Bytes, e.Files, e.Exact && clean)
		} else {
			l.look(u.Quota == "filesystem")
		}
		lines = append(lines, l.share())
	}
	if len(errs) > 0 && c.name == "" {
		fmt.Fprintf(c.stderr, "berth user: users are missing here: %v\n", errs)
	}
	return lines, nil
}
