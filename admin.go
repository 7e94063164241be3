// admin.go is the operator's verbs: who, kick, wall, drain and reload, one request
// each to the running daemon through its local socket. It is apart from main.go,
// which runs daemons, and from the client's files, which need a user, a password
// and a certificate: here the kernel vouches for who asks (contract section 3).

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// adminDial is how long the daemon may take to answer the connection: systemd
	// may have to start it first.
	adminDial = 10 * time.Second
	// adminTimeout is how long it may say nothing while it works: a reload reads
	// every user's file.
	adminTimeout = 2 * time.Minute
	// adminGreetings is how many lines of greeting and reply are read at most.
	adminGreetings = 64
)

// adminVerbs is the part of daemonVerbs that talks to a running daemon.
func adminVerbs() []verb {
	return []verb{
		{name: "who", options: []option{configOption, {name: "json", help: "a JSON object a line; docs/protocol.md, who, has the names in it"},
			{name: "watch", help: "again and again, in place on a terminal, until Ctrl-C"},
			{name: "interval", arg: "TIME", help: "how long between two looks of --watch, which it implies", def: "1s", check: aWatchInterval}}, run: runWho,
			help: "who is logged in, and what he does",
			text: "PROGRESS and RATE are of the transfer that runs: the rate is that of the last one to two seconds. On a\nterminal that is too narrow a file loses its middle; elsewhere everything is told whole.",
			examples: []example{
				{"berth who", "a line for each session"},
				{"berth who --watch", "as top does it"},
				{"berth who --json | jq -r .user | sort | uniq -c", "how many sessions each user has"},
			}},
		{name: "kick", args: "[ID ...]", max: -1, options: []option{configOption, {name: "user", arg: "NAME", help: "all sessions of that user"},
			{name: "addr", arg: "ADDRESS", help: "all sessions from that address"}}, run: runKick,
			help: "end sessions, by their numbers in who",
			text: "Ends them at once, in the middle of whatever they do. Nothing keeps a user from coming back: see\nberth user set NAME --disabled.",
			examples: []example{
				{"berth kick 17", "ends session 17"},
				{"berth kick --user ann", "ends all of ann's"},
				{"berth kick 3 --config try/berth.toml", "of the daemon with another configuration"},
			}},
		{name: "wall", args: "TEXT ...", min: 1, max: -1, options: []option{configOption}, run: runWall,
			help: "tell everybody who is there",
			text: "Those who speak frames are told at once. FTP has no words for what nobody asked: who speaks it reads the\nmessage with SITE SAY, as what is said in chat.",
			examples: []example{
				{"berth wall back in five minutes", "shown by berth sh and berth chat"},
				{"berth wall --config try/berth.toml maintenance at noon", "on the daemon with another configuration"},
			}},
		{name: "drain", options: []option{configOption}, run: runDrain,
			help: "end the daemon when running transfers are done",
			text: "As SIGTERM: no new sessions, idle ones end, transfers may take for as long as server.drain says. Until the end who tells whom it waits for, and kick ends that.",
			examples: []example{
				{"berth drain", "and systemd starts it again only for the next client"},
				{"berth drain --config try/berth.toml", "the one with another configuration"},
			}},
		{name: "learn", args: "NAME", min: 1, max: 1, run: runLearn,
			help: "record what an unknown device says, and tell what it needs",
			text: "The daemon records the sessions in which USER says NAME, with passwords masked, and names that no user has, for as long as this runs; the device keeps its address and its port. There need be no such user yet. The lines go to NAME.dialogue, and at the end there is which profile and which quirks the device needs, and the lines for its file.",
			options: []option{configOption,
				{name: "from", arg: "ADDRESS", help: "record all sessions from there instead, whatever name they say"},
				{name: "for", arg: "TIME", help: "end after that long, at most 1h", def: "10m", check: aDuration},
				{name: "output", arg: "FILE", help: "the dialogue goes to FILE instead of NAME.dialogue"},
				{name: "read", arg: "FILE", help: "only tell about a dialogue that was recorded before"}},
			examples: []example{
				{"berth learn scanner1", "until Ctrl-C, or for ten minutes"},
				{"berth learn gate --from 10.0.9.4", "a camera whose name nobody knows"},
			}},
		{name: "reload", options: []option{configOption}, run: runReload,
			help: "have the daemon read its configuration again",
			text: "Waits for the result: if anything is wrong with the new configuration, the old one stays, the reason\nis printed and the exit code is 1. No session is dropped.",
			examples: []example{
				{"berth reload", "as systemctl reload berth does it"},
				{"berth reload --config try/berth.toml", "the daemon with another configuration"},
			}},
	}
}

func runKick(inv *invocation) error {
	user, addr := inv.str("user"), inv.str("addr")
	if (user != "" || addr != "") == (len(inv.args) > 0) {
		return usageErr("kick takes the numbers of sessions, or --user, or --addr; berth who lists them")
	}
	var ids []uint64
	for _, word := range inv.args {
		id, err := strconv.ParseUint(word, 10, 64)
		if err != nil || id == 0 {
			return usageErr("%s is not the number of a session; berth who lists them", configQuote(word))
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	if addr != "" && addr != "local" {
		from, err := addressIn(addr)
		if err != nil {
			return usageErr("%s is not an address; berth who lists them", configQuote(addr))
		}
		addr = from.String() // as who has it
	}
	d, err := inv.dialDaemon()
	if err != nil {
		return err
	}
	defer d.close()
	if len(ids) == 0 {
		all, err := d.who(nil)
		if err != nil {
			return err
		}
		for _, e := range all {
			if (user == "" || e.User == user) && (addr == "" || e.Address == addr) {
				ids = append(ids, e.ID)
			}
		}
		if len(ids) == 0 {
			return newError("there is no such session; berth who lists them")
		}
	}
	var failed error
	for _, id := range ids {
		text, err := d.ask(map[string]any{"do": "kick", "session": id}, nil)
		switch {
		case err != nil && (len(ids) == 1 || isConnError(err)):
			return err
		case len(inv.args) == 0 && d.reason == "not_found": // it is this one, or has gone by itself
		case err != nil:
			fmt.Fprintf(inv.stderr, "berth kick: %v\n", err)
			failed = exitWith(exitFailed)
		case len(ids) == 1 && len(inv.args) > 0:
			fmt.Fprintln(inv.stdout, shownText(text))
		default:
			fmt.Fprintf(inv.stdout, "%d: %s\n", id, shownText(text))
		}
	}
	return failed
}

func runWall(inv *invocation) error {
	return inv.tellDaemon(map[string]any{"do": "wall", "text": strings.Join(inv.args, " ")})
}

func runDrain(inv *invocation) error  { return inv.tellDaemon(map[string]any{"do": "drain"}) }
func runReload(inv *invocation) error { return inv.tellDaemon(map[string]any{"do": "reload"}) }

// tellDaemon prints what the daemon says.
func (inv *invocation) tellDaemon(request map[string]any) error {
	text, err := inv.askDaemon(request)
	if err == nil {
		fmt.Fprintln(inv.stdout, shownText(text))
	}
	return err
}

// localSocket is where the daemon with --config listens. A configuration with
// mistakes, or one that only root may read, is no reason not to ask: reload has
// the daemon say what is wrong. But who names another one than the system's means
// another daemon: a kick that went to the system's would hit strangers.
func (inv *invocation) localSocket() (string, error) {
	cfg, errs := checkConfig(inv.str("config"))
	system := defaultConfig()
	switch {
	case cfg == nil || len(errs) > 0 && (len(cfg.Listen.Local) == 0 || cfg.Listen.Local[0] == system.Listen.Local[0]):
		if inv.str("config") != defaultConfigPath {
			return "", errs
		}
		cfg = system
	case len(cfg.Listen.Local) == 0:
		return "", errorf("listen.local is empty in %s, and that is where the operator is heard; write local = [\"/run/berth/berth.sock\"] and restart", inv.str("config"))
	}
	return cfg.Listen.Local[0], nil
}

// askDaemon sends one request and returns what its final answer says.
func (inv *invocation) askDaemon(request map[string]any) (string, error) {
	d, err := inv.dialDaemon()
	if err != nil {
		return "", err
	}
	defer d.close()
	return d.ask(request, nil)
}

// A daemonLink is a connection to the daemon's local socket that speaks frames.
type daemonLink struct {
	path   string
	conn   net.Conn
	r      *bufio.Reader
	frame  []byte
	begun  func() error // told that a request has begun; may be nil
	reason string       // in the final answer
}

func (d *daemonLink) close() { d.conn.Close() }

// dialDaemon is a connection to the daemon with --config.
func (inv *invocation) dialDaemon() (*daemonLink, error) {
	path, err := inv.localSocket()
	if err != nil {
		return nil, err
	}
	return dialDaemon(path)
}

// dialDaemon asks a daemon that drains before systemd, who has the other socket then.
func dialDaemon(path string) (*daemonLink, error) {
	d, late := dialLocal(path+lateSuffix, true)
	if late == nil {
		return d, nil
	}
	d, err := dialLocal(path, false)
	if errors.Is(err, errNoDaemon) && !errors.Is(late, errNoDaemon) {
		err = late // why it hears nobody but the operator
	}
	return d, err
}

// believed tells whether who listens on c, at a path that is free but while the daemon
// drains, is the daemon. Where everybody may make files anybody may take that name, hear
// what the operator says and answer in the daemon's place.
func believed(c net.Conn, path string) bool {
	dir, err := os.Stat(filepath.Dir(path))
	if err != nil || dir.Mode()&0o002 == 0 {
		return err == nil
	}
	p, ok := peerCredentials(c)
	st, _ := dir.Sys().(*syscall.Stat_t)
	return ok && (p.uid == 0 || int(p.uid) == os.Geteuid() || st != nil && p.uid == st.Uid)
}

func dialLocal(path string, late bool) (*daemonLink, error) {
	dialer := net.Dialer{Timeout: adminDial}
	conn, err := dialer.Dial("unix", path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, &connError{text: path + ": permission denied; try with sudo, or as a member of the group " + adminGroup}
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, &connError{path + ": no daemon listens there; is berth running, and does --config name its configuration?", errNoDaemon}
	case err != nil:
		return nil, &connError{path + ": " + err.Error(), err}
	case late && !believed(conn, path):
		conn.Close()
		return nil, errNoDaemon
	}
	d := &daemonLink{path: path, conn: conn, r: newReader(conn, maxLine)}
	for _, step := range []struct{ send, want string }{{"", "220"}, {"FRAM 1\r\n", "200"}} {
		io.WriteString(conn, step.send)
		code, text, err := d.reply()
		if err == nil && code != step.want {
			err = &connError{text: fmt.Sprintf("%s: %s %s", path, code, shownText(text))}
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
	}
	return d, nil
}

func (d *daemonLink) gone(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) { // systemd keeps the socket open while the daemon cannot start
		return &connError{d.path + ": the daemon does not answer; berth check and systemctl status berth tell why", err}
	}
	why := err.Error()
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		why = "it has ended, or this session was kicked"
	}
	return &connError{d.path + ": the daemon hung up: " + why, err}
}

// reply is the next reply before there are frames.
func (d *daemonLink) reply() (code, text string, err error) {
	for range adminGreetings {
		d.conn.SetReadDeadline(time.Now().Add(adminDial))
		l, err := d.r.ReadSlice('\n')
		if err != nil {
			return "", "", d.gone(err)
		}
		if s := strings.TrimRight(string(l), "\r\n"); len(s) > 3 && s[3] == ' ' {
			return s[:3], s[4:], nil
		}
	}
	return "", "", d.gone(newError("it talks without end"))
}

// ask sends one request and returns what its final answer says; what data comes goes
// to line, by lines.
func (d *daemonLink) ask(request map[string]any, line func([]byte) error) (string, error) {
	if _, err := d.conn.Write(appendFrame(nil, frameRequest, encodeJSON(request))); err != nil {
		return "", d.gone(err)
	}
	var rest []byte
	for {
		d.conn.SetReadDeadline(time.Now().Add(adminTimeout))
		t, frame, err := readFrame(d.r, d.frame)
		if d.frame = frame; err != nil {
			return "", d.gone(err)
		}
		switch t {
		case frameData:
			for rest = append(rest, frame...); line != nil; {
				end := bytes.IndexByte(rest, '\n') + 1
				if end == 0 {
					break
				}
				if err := line(rest[:end]); err != nil {
					return "", err
				}
				rest = rest[end:]
			}
		case frameAnswer:
			var a answer
			if err := json.Unmarshal(frame, &a); err != nil {
				return "", d.gone(err)
			}
			d.reason = a.Reason
			switch {
			case a.Code < 200:
				if d.begun != nil {
					if err := d.begun(); err != nil {
						return "", err
					}
				}
			case a.Code == codeClosing:
				return "", d.gone(newError(shownText(a.Text)))
			case a.Reason == "not_logged_in", a.Reason == "denied":
				return "", newError("only root and the group " + adminGroup + " may ask that; use sudo, or: adduser NAME " + adminGroup + ", and log in to the machine anew")
			case a.Code >= 400:
				return "", newError(shownLines(a.Text))
			case a.Code >= 200:
				return a.Text, nil
			}
		}
	}
}

// shownLines is shownText for a text of several lines, as the list of what is wrong
// with a configuration.
func shownLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = shownText(lines[i])
	}
	return strings.Join(lines, "\n")
}
