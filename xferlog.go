// xferlog.go writes the transfer log (log.transfers): a line for each upload, download
// and deletion that has ended, as wu-ftpd, vsftpd and ProFTPD write it, for the programs
// that read xferlog(5). It is apart from log.go because it is a file of its own with a
// shape of its own, and its trouble must be nobody's else: a disk that is full or stands
// still costs lines of this log, and never a transfer.

package main

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	// transferLogMode is that of a new file: names of files are nobody's business.
	transferLogMode = 0o640

	// transferLogPatience is how long a line waits for those before it. Files do not
	// take that long but on a disk that stands still.
	transferLogPatience = time.Second
)

// A transferEvent is one line.
type transferEvent struct {
	time      time.Time // of the end
	took      time.Duration
	host      string // an address, or "local"
	bytes     int64
	path      string // as the user knows it
	ascii     bool
	direction byte // 'i' for an upload, 'o' for a download, 'd' for a deletion
	user      string
	complete  bool
}

// appendTo adds the line. The name and the user are made one word each, which is all
// that this format can carry.
func (e *transferEvent) appendTo(b []byte) []byte {
	seconds := int64(e.took.Round(time.Second) / time.Second)
	if e.direction != 'd' {
		seconds = max(seconds, 1) // readers divide by it
	}
	b = append(b, e.time.Format(time.ANSIC)...)
	b = append(strconv.AppendInt(append(b, ' '), seconds, 10), ' ')
	b = append(append(b, e.host...), ' ')
	b = append(strconv.AppendInt(b, e.bytes, 10), ' ')
	b = append(b, transferLogWord(e.path)...)
	kind, status := " b _ ", byte('i')
	if e.ascii {
		kind = " a _ "
	}
	if e.complete {
		status = 'c'
	}
	b = append(append(b, kind...), e.direction)
	b = append(append(b, " r "...), transferLogWord(e.user)...)
	return append(append(b, " ftp 0 * "...), status, '\n')
}

// transferLogWord has _ for white space, as other servers do it, and for all that could
// be taken for a line's end or does not belong into a text.
func transferLogWord(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}, s)
}

// A transferLog is the open file. Its zero value after path and log needs nothing.
type transferLog struct {
	path  string
	log   *slog.Logger
	turn  chan struct{} // of one; who holds it has what follows
	file  *os.File      // nil: not open
	info  os.FileInfo   // of file
	torn  bool          // its last line has no end
	wrong bool          // that it cannot be written has been told

	stuck atomic.Bool  // nobody waits for turn
	lost  atomic.Int64 // lines, since the last that was written
}

// newTransferLog is nil for no path; all methods do nothing then. A file that cannot be
// opened is told at once, and tried again with each line.
func newTransferLog(path string, log *slog.Logger) *transferLog {
	if path == "" {
		return nil
	}
	l := &transferLog{path: path, log: log, turn: make(chan struct{}, 1)}
	l.told(l.open())
	return l
}

// add writes one line.
func (l *transferLog) add(e transferEvent) {
	if l == nil {
		return
	}
	select {
	case l.turn <- struct{}{}:
	default:
		if !l.wait() {
			l.lost.Add(1)
			return
		}
	}
	line := e.appendTo(make([]byte, 0, 256))
	if !within(transferLogPatience, func() {
		err := l.write(line)
		if err != nil {
			l.lost.Add(1)
		}
		l.told(err)
		l.stuck.Store(false)
		<-l.turn
	}) {
		l.stuck.Store(len(l.turn) > 0) // unless it has ended since
	}
}

// wait is for a turn that others have. After one that waited in vain none waits until
// the disk goes on.
func (l *transferLog) wait() bool {
	if l.stuck.Load() {
		return false
	}
	t := time.NewTimer(transferLogPatience)
	defer t.Stop()
	select {
	case l.turn <- struct{}{}:
		return true
	case <-t.C:
		l.stuck.Store(true)
		return false
	}
}

// write appends one line by one write, to the file that has the path now: logrotate may
// have moved the one that is open.
func (l *transferLog) write(line []byte) error {
	if l.file != nil {
		if now, err := os.Stat(l.path); err != nil || !os.SameFile(now, l.info) {
			l.file.Close()
			l.file = nil
		}
	}
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if l.torn {
		line = append([]byte{'\n'}, line...)
	}
	n, err := l.file.Write(line)
	if n > 0 {
		l.torn = n < len(line)
	}
	return err
}

func (l *transferLog) open() error {
	// A pipe that nobody reads would hang here, and with it the start.
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK, transferLogMode)
	if err != nil {
		return err
	}
	if l.info, err = f.Stat(); err == nil && !l.info.Mode().IsRegular() {
		err = &fs.PathError{Op: "open", Path: l.path, Err: errors.New("it is no regular file")}
	}
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.torn = f, false
	return nil
}

// told says in the log that lines are lost, once, and that they are no more.
func (l *transferLog) told(err error) {
	switch {
	case err != nil && !l.wrong:
		l.log.Error("transfer log cannot be written", "path", l.path, "error", unitHint(err))
	case err == nil && l.lost.Load() > 0:
		l.log.Warn("transfer log written again", "path", l.path, "lost", l.lost.Swap(0))
	}
	l.wrong = err != nil
}
