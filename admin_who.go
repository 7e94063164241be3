// admin_who.go is berth who: the table of sessions, once or again and again. It is
// apart from admin.go, which knows how to ask the daemon, because its question is how
// much of an answer fits on a terminal, and how that is given back.

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	watchLeast = 100 * time.Millisecond // between two looks: more often nobody can read
	watchMost  = time.Minute            // well within limits.idle, after which the daemon would hang up

	// What xterm and all that follow it understand: another screen with the cursor
	// hidden and at home, and the way back.
	screenEnter = "\x1b[?1049h\x1b[?25l\x1b[H\x1b[J"
	screenLeave = "\x1b[?25h\x1b[?1049l"
)

func aWatchInterval(value string) error {
	if err := aDuration(value); err != nil {
		return err
	}
	var d duration
	if d.UnmarshalText([]byte(value)); d.std() < watchLeast || d.std() > watchMost {
		return errorf("%s is not between %v and %v", value, watchLeast, watchMost)
	}
	return nil
}

func runWho(inv *invocation) error {
	watch := inv.on("watch") || inv.on("interval")
	if watch && inv.on("json") {
		return usageErr("--json is one look; for more, ask again: the objects of several would run into each other")
	}
	d, err := inv.dialDaemon()
	if err != nil {
		return err
	}
	defer d.close()
	if watch {
		return inv.watchWho(d)
	}
	var print func(line []byte) error
	if inv.on("json") {
		print = func(line []byte) error {
			_, err := inv.stdout.Write(line)
			return err
		}
	}
	all, err := d.who(print)
	if err != nil || print != nil {
		return err
	}
	cols := 0
	if f := terminalFile(inv.stdout); f != nil {
		cols = int(terminalSizeOf(f).Cols)
	}
	_, err = io.WriteString(inv.stdout, strings.Join(whoTable(all, cols, time.Now()), "\n")+"\n")
	return err
}

// who asks for the sessions; print, if not nil, takes the lines as they come.
func (d *daemonLink) who(print func(line []byte) error) (all []whoEntry, err error) {
	if print == nil {
		print = func(line []byte) error {
			var e whoEntry
			if err := json.Unmarshal(line, &e); err != nil {
				return errorf("the daemon's answer: %w", err)
			}
			all = append(all, e)
			return nil
		}
	}
	_, err = d.ask(map[string]any{"do": "who"}, print)
	return all, err
}

// watchWho shows who is there until a signal or the daemon's end: in place on a
// terminal, else as one table after the other.
func (inv *invocation) watchWho(d *daemonLink) error {
	screen := terminalFile(inv.stdout)
	signals := func() chan os.Signal { return make(chan os.Signal, 1) }
	end, redraw, suspend, back := signals(), signals(), signals(), signals()
	signal.Notify(end, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(end)
	if screen != nil {
		signal.Notify(redraw, syscall.SIGWINCH)
		defer signal.Stop(redraw)
		signal.Notify(suspend, syscall.SIGTSTP)
		defer signal.Stop(suspend)
		signal.Notify(back, syscall.SIGCONT)
		defer signal.Stop(back)
		io.WriteString(screen, screenEnter)
		defer io.WriteString(screen, screenLeave)
	}
	var ended atomic.Int32
	var link atomic.Pointer[daemonLink]
	link.Store(d)
	defer func() { link.Load().close() }()
	over, done := make(chan struct{}), make(chan struct{})
	defer close(done)
	go func() {
		select {
		case s := <-end:
			ended.Store(int32(s.(syscall.Signal)))
			close(over)
			link.Load().close() // whatever it waits for
		case <-done:
		}
	}()
	tick := time.NewTicker(inv.period("interval"))
	defer tick.Stop()
	for {
		all, err := link.Load().who(nil)
		if isConnError(err) && ended.Load() == 0 {
			// Who has a uid's user is a session like others, and a drain ends it. The daemon
			// still hears him, but not at the socket where systemd would start the next one.
			if late, gone := dialLocal(d.path+lateSuffix, true); gone == nil {
				link.Swap(late).close()
				all, err = late.who(nil)
			}
		}
		switch s := ended.Load(); {
		case s == int32(syscall.SIGINT): // that is how one leaves
			return nil
		case s != 0:
			return exitWith(128 + int(s))
		case err != nil:
			return err
		}
		for again := true; again; {
			if _, err := inv.stdout.Write(whoScreen(all, screen, time.Now())); err != nil {
				return err
			}
			again = false
			select {
			case <-over:
			case <-tick.C:
			case <-redraw:
				again = true
			case <-back: // somebody else has stopped it
				again = true
			case <-suspend:
				io.WriteString(screen, screenLeave)
				unix.Kill(os.Getpid(), unix.SIGSTOP)
				// The other threads stop a moment later than kill returns: what is written
				// before would hide the shell again.
				select {
				case <-back:
				case <-over:
				}
				io.WriteString(screen, screenEnter)
				again = true
			}
		}
	}
}

// whoScreen is what one look of --watch writes: over the last one on a terminal, and
// behind it, with an empty line between the two, elsewhere.
func whoScreen(all []whoEntry, screen *os.File, now time.Time) []byte {
	var moving int
	var rate int64
	for _, e := range all {
		if e.Size > 0 || e.Bytes > 0 {
			moving++
			rate += e.Rate
		}
	}
	head := fmt.Sprintf("%s  sessions: %d  transfers: %d  %s/s", now.Format("2006-01-02 15:04:05"), len(all), moving, humanBytes(rate))
	if screen == nil {
		return []byte(head + "\n" + strings.Join(whoTable(all, 0, now), "\n") + "\n\n")
	}
	size := terminalSizeOf(screen)
	cols, rows := int(size.Cols), int(size.Rows)
	if cols == 0 {
		cols, rows = 80, 24
	}
	lines := append([]string{screenCut(head, cols), ""}, whoTable(all, cols, now)...)
	if len(lines) > rows && rows > 3 {
		left := len(lines) - rows + 1
		lines = append(lines[:rows-1], screenCut(fmt.Sprintf("and %d more; a larger window shows them, or berth who", left), cols))
	}
	return []byte("\x1b[H" + strings.Join(lines, "\x1b[K\r\n") + "\x1b[K\x1b[J")
}

const (
	whoUser    = 1 // columns that may be shortened
	whoAddress = 3
	whoFile    = 6
)

// whoTable is the sessions as lines of at most cols cells; 0: as long as they like.
// What does not fit loses the middle of its file first: both ends of a path tell most.
func whoTable(all []whoEntry, cols int, now time.Time) []string {
	rows, gap := whoRows(all, false, now), 2
	over := func() int {
		cells := -gap - cols
		for i := range rows[0] {
			cells += tableCells(rows, i) + gap
		}
		return cells
	}
	if cols > 0 && over() > 0 {
		rows, gap = whoRows(all, true, now), 1
		for _, c := range []struct{ column, least int }{{whoFile, 12}, {whoAddress, 11}, {whoUser, 8}, {whoFile, 4}, {whoAddress, 7}} {
			shrinkColumn(rows, c.column, c.least, over())
		}
	}
	lines := strings.Split(strings.TrimSuffix(columnsApart(rows, gap), "\n"), "\n")
	for i := range lines {
		if lines[i] = strings.TrimRight(lines[i], " "); cols > 0 {
			lines[i] = screenCut(lines[i], cols)
		}
	}
	return lines
}

func whoRows(all []whoEntry, narrow bool, now time.Time) [][]string {
	rows := [][]string{{"ID", "USER", "PROTOCOL", "ADDRESS", "SINCE", "VERB", "FILE", "PROGRESS", "RATE"}}
	dash := func(s string) string {
		if s == "" {
			return "-"
		}
		return shownText(s)
	}
	for _, e := range all {
		since, address, verb, file, progress, rate := e.Since, e.Address, e.Verb, e.File, "", ""
		if t, err := time.Parse(time.RFC3339, e.Since); err == nil {
			since = whoSince(t.Local(), narrow, now)
		}
		if e.Via != "" && !narrow {
			address += " via " + e.Via
		}
		if verb == "" {
			verb = "idle " + progressTime(time.Duration(e.Idle)*time.Second)
		}
		if file == "" {
			file = e.Command
		}
		if e.Size > 0 {
			if progress = progressPercent(e.Bytes, e.Size, e.Bytes >= e.Size); !narrow {
				progress += " of " + humanBytes(e.Size)
			}
		} else if e.Bytes > 0 {
			progress = humanBytes(e.Bytes)
		}
		if e.Size > 0 || e.Bytes > 0 {
			rate = humanBytes(e.Rate) + "/s"
		}
		if narrow {
			short := newReplacer(" ", "", "iB", "")
			progress, rate = short.Replace(progress), short.Replace(rate)
		}
		rows = append(rows, []string{strconv.FormatUint(e.ID, 10), dash(e.User), e.Protocol, dash(address), since, dash(verb), dash(file), dash(progress), dash(rate)})
	}
	return rows
}

// whoSince is when a session came; in little room the day or the time of it.
func whoSince(t time.Time, narrow bool, now time.Time) string {
	switch {
	case !narrow:
		return t.Format("2006-01-02 15:04:05")
	case t.YearDay() == now.YearDay() && t.Year() == now.Year():
		return t.Format("15:04")
	}
	return t.Format("Jan02")
}

// shrinkColumn takes up to by cells from a column, and leaves it least.
func shrinkColumn(rows [][]string, column, least, by int) {
	width := tableCells(rows, column)
	to := max(width-by, least)
	if by <= 0 || to >= width {
		return
	}
	for i := range rows {
		rows[i][column] = screenShorten(rows[i][column], to)
	}
}
