// These tests look at berth who as a person does: what fits into a window, and that
// the terminal is given back however --watch ends.

package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestWhoTable(t *testing.T) {
	now := time.Date(2026, 11, 21, 20, 15, 0, 0, time.Local)
	at := func(d time.Duration) string { return now.Add(-d).UTC().Format(time.RFC3339) }
	all := []whoEntry{
		{ID: 7, User: "ann", Protocol: "ftp", Address: "192.168.1.20", Since: at(time.Hour), Verb: "STOR", File: "/camera/garden/2026-11-21/front-door-00017.jpg", Bytes: 3 << 20, Size: 12 << 20, Rate: 1300 << 10},
		{ID: 12, User: "bob", Protocol: "frames", Address: "10.0.0.7", Via: "10.0.0.1", Since: at(50 * time.Hour), Idle: 125},
		{ID: 13, User: "carol", Protocol: "ftps", Address: "10.0.0.8", Since: at(0), Verb: "STOR", File: "/a\x1b[2J", Bytes: 999},
		{ID: 14, User: "dan", Protocol: "local", Address: "local", Since: at(0), Verb: "exec", Command: "snap"},
	}
	rows := func(cols int) string {
		lines := whoTable(all, cols, now)
		for _, l := range lines {
			if cols > 0 && screenCells(l) > cols {
				t.Errorf("%d cells in a window of %d: %q", screenCells(l), cols, l)
			}
		}
		return strings.Join(lines, "\n")
	}
	if got, want := rows(0), strings.TrimPrefix(`
ID  USER   PROTOCOL  ADDRESS                SINCE                VERB       FILE                                           PROGRESS          RATE
7   ann    ftp       192.168.1.20           2026-11-21 19:15:00  STOR       /camera/garden/2026-11-21/front-door-00017.jpg  25% of 12.0 MiB  1.27 MiB/s
12  bob    frames    10.0.0.7 via 10.0.0.1  2026-11-19 18:15:00  idle 2:05  -                                              -                 -
13  carol  ftps      10.0.0.8               2026-11-21 20:15:00  STOR       /a\x1b[2J                                      999 B             0 B/s
14  dan    local     local                  2026-11-21 20:15:00  exec       snap                                           -                 -`, "\n"); squeezed(got) != squeezed(want) {
		t.Errorf("without a terminal:\n%s\nwant:\n%s", got, want)
	}
	if got, want := rows(80), strings.TrimPrefix(`
ID USER  PROTOCOL ADDRESS      SINCE VERB      FILE             PROGRESS RATE
7  ann   ftp      192.168.1.20 19:15 STOR      /camer...017.jpg 25%      1.27M/s
12 bob   frames   10.0.0.7     Nov19 idle 2:05 -                -        -
13 carol ftps     10.0.0.8     20:15 STOR      /a\x1b[2J        999B     0B/s
14 dan   local    local        20:15 exec      snap             -        -`, "\n"); got != want {
		t.Errorf("in 80 columns:\n%s\nwant:\n%s", got, want)
	}
	if got := rows(200); !strings.Contains(got, "front-door-00017.jpg") || !strings.Contains(got, "25% of 12.0 MiB") {
		t.Errorf("a window with room shows\n%s", got)
	}
	all[0].Address, all[1].User = "2001:db8:1234:5678:9abc:def0:1234:5678", strings.Repeat("long", 8)
	for cols := 10; cols < 150; cols++ {
		rows(cols)
	}
}

func squeezed(s string) string {
	var b strings.Builder
	for line := range strings.Lines(s) {
		b.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	return b.String()
}

func TestWhoWatch(t *testing.T) {
	t.Parallel()
	p, _, file, _ := administered(t, "")
	line := p.dial("control").login()
	line.cmd("EPSV", "229 *")
	data := line.open()
	line.cmd("STOR a-name-that-is-too-long-for-the-window-it-is-shown-in.jpg", "150 *")
	io.WriteString(data, "12345")
	watch := []string{"who", "--interval", "100ms", "--config", file}

	for _, end := range []struct {
		how  string
		end  func(c *clientTerminal)
		code int
	}{
		{"Ctrl-C", func(c *clientTerminal) { c.keys("\x03") }, exitOK},
		{"SIGTERM", func(c *clientTerminal) { c.cmd.Process.Signal(syscall.SIGTERM) }, 128 + int(syscall.SIGTERM)},
		{"SIGHUP", func(c *clientTerminal) { c.cmd.Process.Signal(syscall.SIGHUP) }, 128 + int(syscall.SIGHUP)},
	} {
		c := newClientTerminal(t, 10, 80, watch...)
		c.until(screenEnter)
		c.until("sessions: 1  transfers: 1  ")
		c.until("PROGRESS RATE")
		if row := c.until("5B"); !strings.Contains(row, "ann") || !strings.Contains(row, "...") {
			t.Errorf("who --watch shows %q", row)
		}
		c.until("\x1b[H20") // again, in place
		if end.how == "Ctrl-C" {
			c.resize(10, 200)
			c.until("too-long-for-the-window-it-is-shown-in.jpg")
		}
		if end.how == "Ctrl-C" { // and Ctrl-Z before
			c.keys("\x1a")
			c.until(screenLeave)
			waitUntil(t, "it is stopped", func() bool {
				stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
				return strings.Contains(string(stat), ") T ")
			})
			io.WriteString(c.far, "the shell")
			if between := c.until("the shell"); between != "the shell" {
				t.Errorf("stopped, who --watch has written %q", between)
			}
			c.cmd.Process.Signal(syscall.SIGCONT)
			c.until(screenEnter)
			c.until("PROGRESS")
		}
		end.end(c)
		c.until(screenLeave)
		c.ended(end.code)
		if now := c.modes(); now != c.before {
			t.Errorf("after %s the terminal is another: %+v; was %+v", end.how, now, c.before)
		}
	}

	says(t, exitUsage, "", "berth who: --json is one look*\n", append(watch, "--json")...)
	says(t, exitUsage, "", "berth who: *between 100ms and 1m0s*\n", "who", "--interval", "10ms", "--config", file)

	// Where there is no terminal, one table follows the other, until the daemon goes.
	cmd := exec.Command(os.Args[0], watch...)
	cmd.Env = append(os.Environ(), asBerth+"=1", noRaceSleep)
	var out, errs syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "three tables", func() bool { return strings.Count(out.String(), "ID  USER  PROTOCOL") >= 3 })
	data.Close()
	line.want("226 *")
	line.cmd("QUIT", "221 *")
	if code, _, _ := cli(t, "drain", "--config", file); code != exitOK {
		t.Errorf("drain: %d", code)
	}
	if cmd.Wait(); cmd.ProcessState.ExitCode() != exitNoConn || !wildcard("berth who: */s: the daemon hung up: *\n", errs.String()) || strings.Contains(out.String(), "\x1b") {
		t.Errorf("after the daemon's end: %v, %q; it had shown %q", cmd.ProcessState, errs.String(), out.String())
	}
	p.ended(exitOK)
}

// TestWhoWatchDrain: a drain ends the session of an operator who is a user too, and he
// goes on watching.
func TestWhoWatchDrain(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "")
	path := b.localPath(t, file)
	b.user(t, "boss", fmt.Sprintf("uid = %d\n", os.Getuid()))
	says(t, exitOK, "Reloaded.\n", "", "reload", "--config", file)
	line := p.dial("control").login()
	line.cmd("EPSV", "229 *")
	data := line.open()
	line.cmd("STOR f", "150 *")
	var out, errs syncBuffer
	cmd := exec.Command(os.Args[0], "who", "--interval", "100ms", "--config", file)
	cmd.Env = append(os.Environ(), asBerth+"=1", noRaceSleep)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tables := func() { // three more
		n := strings.Count(out.String(), "RATE")
		waitUntil(t, "three tables", func() bool { return strings.Count(out.String(), "RATE") >= n+3 })
	}
	tables()
	says(t, exitOK, "Draining.\n", "", "drain", "--config", file)
	heardLate(t, path)
	cli(t, "kick", "--user", "boss", "--config", file) // the end of it, if it has not come by itself
	waitUntil(t, "the session has ended", func() bool { return len(sessionsOf(t, file)["boss"]) == 0 })
	tables()
	data.Close()
	line.want("226 *")
	line.cmd("QUIT", "221 *")
	if cmd.Wait(); cmd.ProcessState.ExitCode() != exitNoConn || !wildcard("berth who: */s*: the daemon hung up: *\n", errs.String()) {
		t.Errorf("after the daemon's end: %v, %q", cmd.ProcessState, errs.String())
	}
	p.ended(exitOK)
}

func TestKickMany(t *testing.T) {
	t.Parallel()
	p, b, file, _ := administered(t, "")
	b.user(t, "bob", "")
	says(t, exitOK, "Reloaded.\n", "", "reload", "--config", file)
	for range 3 {
		p.dial("control").login()
	}
	bob := p.dial("control")
	bob.want("220 *")
	bob.frames().enter("bob")
	told := p.dial("control").login()
	all := sessionsOf(t, file)["ann"]
	id := all[len(all)-1].ID
	says(t, exitFailed, fmt.Sprintf("%d: Ended.\n", id), "berth kick: There is no other session 4711; who lists them.\n", "kick", fmt.Sprint(id), fmt.Sprint(id), "4711", "--config", file)
	told.want("421 The operator has ended this session.")
	told.closed()
	p.dial("control").login()
	id = sessionsOf(t, file)["ann"][0].ID
	says(t, exitOK, "Ended.\n", "", "kick", fmt.Sprint(id), "--config", file)
	waitUntil(t, "two of ann's are gone", func() bool { return len(sessionsOf(t, file)["ann"]) == 3 })
	says(t, exitOK, "*: Ended.\n*: Ended.\n*: Ended.\n", "", "kick", "--user", "ann", "--config", file)
	waitUntil(t, "ann is gone", func() bool { return len(sessionsOf(t, file)["ann"]) == 0 })
	says(t, exitFailed, "", "berth kick: there is no such session; berth who lists them\n", "kick", "--user", "bob", "--addr", "127.0.0.2", "--config", file)
	says(t, exitOK, "*: Ended.\n", "", "kick", "--addr", "::ffff:127.0.0.1", "--config", file)
	waitUntil(t, "bob is gone", func() bool { return len(sessionsOf(t, file)) == 0 })
	says(t, exitFailed, "", "berth kick: there is no such session*\n", "kick", "--addr", "local", "--config", file)
	// A mistake hides where the daemon of another configuration listens; the system's is not meant.
	for _, text := range []string{"", "[listen\n"} {
		other := filepath.Join(t.TempDir(), "other.toml")
		want := "berth kick: " + other + ": no such file; *\n"
		if text != "" {
			os.WriteFile(other, []byte(text), 0o600)
			want = "berth kick: " + other + ":1:*: not valid TOML *\n"
		}
		says(t, exitFailed, "", want, "kick", fmt.Sprint(id), "--config", other)
	}
	for _, args := range [][]string{{}, {"3", "--user", "ann"}, {"--addr", "nowhere"}} {
		says(t, exitUsage, "", "berth kick: *", append([]string{"kick", "--config", file}, args...)...)
	}
}
