// client_help.go tells about the table of verbs: help VERB, and the man page, which
// packaging/berth.1 is a copy of. All that it says of verbs and options is the table's
// (verbs.go, main.go, client_verbs.go, and user.go's own); only what belongs to no verb,
// such as files and exit codes, is written here. It is a file of its own because it is
// text, and runs nothing. Completion, the table's third reader, is in client_complete.go.

package main

import (
	"bytes"
	"slices"
	"strings"
)

// manDate is when the texts of the man page last changed. It is not the day of the build,
// so that the page is the same wherever it is made.
const manDate = "2026-11-21"

// runHelp is help, help VERB, and for verbs that have verbs themselves help VERB VERB.
func runHelp(inv *invocation) error {
	if len(inv.args) == 0 {
		usage(inv.stdout)
		return nil
	}
	v := findVerb(inv.args[0])
	switch {
	case v == nil:
		return noVerb(inv.args[0])
	case v.raw: // knows more about itself than the table does
		words := append(slices.Clone(inv.args[1:]), "-h")
		return v.run(&invocation{verb: v, args: words, stdin: inv.stdin, stdout: inv.stdout, stderr: inv.stderr, ctx: inv.ctx})
	case len(inv.args) > 1:
		return usageErr("unexpected argument %s; %s", configQuote(inv.args[1]), inv.verb.hint())
	}
	v.usage(inv.stdout)
	return nil
}

// userOptions is what a verb of berth user takes, as the table has it for other verbs.
func userOptions(v *userVerb) []option {
	var list []option
	for _, f := range new(userCommand).flags(v) {
		o := option{name: f.name, arg: f.arg, help: f.help}
		if f.name == configOption.name {
			o = configOption
		}
		list = append(list, o)
	}
	return list
}

// --- the man page ---

// A manTerm is a term of a list and what is said of it.
type manTerm struct{ term, text string }

const manDescription = `berth takes files from cameras, scanners, loggers and people, hands files out, and runs commands, on a small Linux box. Every user has a home that nothing leads out of, with a quota of its own. The same program is the daemon, what looks after it, and the client.

The daemon speaks FTP, so that any FTP client reaches it, and frames of its own, which the client speaks: everything over one connection, with a digest of each file. The client is for berth. For other FTP servers there is lftp.`

const manNames = `What is on a box is named as for scp, [USER@]HOST:PATH, and PATH begins in the user's home. A word without ":", or with "/" before it, is a file here: write ./a:b for one with ":" in its name. Patterns as 'box:*.jpg' are quoted, so that the box finds the names and not the shell.

HOST is a name, an address, an IPv6 address as [fe80::1], a name of config.toml, or unix:/run/berth/berth.sock for the local socket. berth://USER@HOST:PORT/PATH is the same as a URL. Without HOST, as in ":photos", the box is the one of BERTH_URL.

The certificate of a box is shown when it is met for the first time, and has to be the same from then on, as with ssh. To 127.0.0.1 and ::1 no TLS is needed, and on the local socket neither TLS nor a password. Passwords are looked for in --password-file, in BERTH_PASSWORD and in ~/.netrc; then they are asked for. A key made by berth keygen takes their place.`

const manConnection = `These are for all commands that connect to a box.`

var (
	manFiles = []manTerm{
		{"~/.config/berth/config.toml", "names for boxes: [hosts.NAME] with host, port, user, fingerprint, ca, key, directory, jobs and plain"},
		{"~/.config/berth/known_hosts", "the certificates of the boxes that were met"},
		{"~/.config/berth/id.pem", "the key that berth keygen makes"},
		{"~/.netrc", "passwords, as for ftp and curl: machine HOST login USER password PASSWORD"},
		{defaultConfigPath, "the daemon's configuration; an empty one is valid"},
	}
	manEnvironment = []manTerm{
		{"BERTH_URL", "the box where none is named: berth://USER@HOST:PORT/PATH, or USER@HOST:PATH"},
		{"BERTH_PASSWORD", "the password"},
		{"NETRC", "the file to read in place of ~/.netrc"},
		{"XDG_CONFIG_HOME", "where berth/config.toml and the files beside it are, in place of ~/.config"},
		{"NO_COLOR", "if it is set and not empty, output has no colours"},
	}
	manExit = []manTerm{
		{itoa(exitOK), "done"},
		{itoa(exitFailed), "not done: the box said no, or something failed here"},
		{itoa(exitUsage), "the command line is wrong"},
		{itoa(exitNoConn), "there is no connection, or it was lost and could not be made again"},
		{itoa(exitMismatch), "what arrived is not what was sent: the digests differ"},
		{"128+N", "signal N ended it"},
	}
	manExamples = []manTerm{
		{"berth demo", "a box on this machine, to try everything with"},
		{"berth put -r photos ann@box:", "send a directory"},
		{"berth sync --delete ann@box:logs/ logs/", "make a directory here like one on the box"},
		{"berth exec ann@box -- uptime", "run a command"},
	}
	manSeeAlso = []string{"curl", "lftp", "rsync", "scp", "systemctl"}
)

func runMan(inv *invocation) error {
	_, err := inv.stdout.Write(manual())
	return err
}

// manual is berth(1), in the macros of man(7).
func manual() []byte {
	var m manPage
	m.b.WriteString(".\\\" Made by \"berth man\" from the table of verbs: edit that.\n")
	m.raw(".TH BERTH 1 " + manDate + " berth berth") // a date has plain hyphens
	m.macro("SH", "NAME")
	m.line("berth - files and commands on small boxes: the daemon and its client")
	m.macro("SH", "SYNOPSIS")
	m.raw(manBold("berth") + " " + manItalic("COMMAND") + " [" + manItalic("OPTIONS") + "] [" + manItalic("ARGUMENT") + " ...]")
	m.macro("SH", "DESCRIPTION")
	m.text(manDescription)
	m.macro("SH", "NAMES AND CONNECTIONS")
	m.text(manNames)
	heading := ""
	for _, v := range verbs() {
		now := "COMMANDS ON THE BOX"
		if v.client {
			now = "COMMANDS FROM ANYWHERE"
		}
		if now != heading {
			heading = now
			m.macro("SH", now)
		}
		m.verb(&v)
	}
	m.macro("SH", "CONNECTION OPTIONS")
	m.text(manConnection)
	for i := range connectionOptions {
		m.option(&connectionOptions[i], "")
	}
	m.list("FILES", manFiles)
	m.list("ENVIRONMENT", manEnvironment)
	m.macro("SH", "EXIT STATUS")
	m.line("berth exec has the exit code of its command. All others have these:")
	m.terms(manExit)
	m.list("EXAMPLES", manExamples)
	m.macro("SH", "SEE ALSO")
	for i, name := range manSeeAlso {
		end := ","
		if i == len(manSeeAlso)-1 {
			end = ""
		}
		m.raw(".BR " + name + " (1)" + end)
	}
	return m.b.Bytes()
}

// A manPage is a man page being written.
type manPage struct{ b bytes.Buffer }

//go:noinline
func (m *manPage) raw(line string) { m.b.WriteString(line + "\n") }

func (m *manPage) macro(name string, words ...string) {
	m.b.WriteString("." + name)
	for _, w := range words {
		if w = manEscape(w); hasText(w, " ") {
			w = `"` + w + `"`
		}
		m.b.WriteString(" " + w)
	}
	m.b.WriteByte('\n')
}

// line is text that is one paragraph, or part of one. Every sentence begins a line, as
// roff wants it, to put the space before it; lines are as long as mandoc -T lint allows.
func (m *manPage) line(text string) {
	const width = 80
	line := ""
	end := func() {
		if beginsWith(line, ".") {
			line = `\&` + line
		}
		m.raw(line)
		line = ""
	}
	for word := range strings.FieldsSeq(text) {
		word = manEscape(word)
		if line != "" && (strings.HasSuffix(line, ".") && !strings.HasSuffix(line, "..") || len(line)+len(word) >= width) {
			end()
		}
		line = strings.TrimLeft(line+" "+word, " ")
	}
	end()
}

// text is paragraphs, the first without a macro before it.
func (m *manPage) text(text string) {
	for i, p := range strings.Split(text, "\n\n") {
		if i > 0 {
			m.macro("PP")
		}
		m.line(p)
	}
}

func (m *manPage) list(heading string, terms []manTerm) {
	m.macro("SH", heading)
	m.terms(terms)
}

func (m *manPage) terms(terms []manTerm) {
	for _, t := range terms {
		m.macro("TP")
		m.raw(manBold(t.term))
		m.line(t.text)
	}
}

// verb is a verb's part of the page, without the options that all verbs of the client have.
func (m *manPage) verb(v *verb) {
	m.macro("SS", v.use())
	m.line(sentence(v.help))
	if v.text != "" {
		m.macro("PP")
		m.text(v.text)
	}
	connects := false
	for i := range v.options {
		if isConnectionOption(&v.options[i]) {
			connects = true
			continue
		}
		m.option(&v.options[i], "")
	}
	if connects {
		m.macro("PP")
		m.line("The connection options are further below.")
	}
	examples := v.examples
	if v.raw {
		examples = append(slices.Clone(examples), m.userVerbs()...)
	}
	m.macro("PP")
	m.line("Examples:")
	for _, e := range examples {
		m.terms([]manTerm{{e.line, e.what}})
	}
}

// userVerbs is what berth user has below it: its verbs, the options of all of them, each
// once, and an example each.
func (m *manPage) userVerbs() []example {
	var options []option
	takers := map[string][]string{}
	var examples []example
	for i := range userVerbs {
		v := &userVerbs[i]
		m.macro("TP")
		m.raw(manBold("berth user " + v.name))
		m.line(v.purpose)
		examples = append(examples, example{v.example, v.purpose})
		for _, o := range userOptions(v) {
			if takers[o.name] == nil {
				options = append(options, o)
			}
			takers[o.name] = append(takers[o.name], v.name)
		}
	}
	m.macro("PP")
	m.line("Options, and which of them take each:")
	for i := range options {
		who := strings.Join(takers[options[i].name], ", ")
		if len(takers[options[i].name]) == len(userVerbs) {
			who = "all"
		}
		m.option(&options[i], " ("+who+")")
	}
	return examples
}

// option is an entry of a list of options.
func (m *manPage) option(o *option, more string) {
	m.macro("TP")
	flag := strings.TrimSuffix(o.flag(), " "+o.arg)
	tag := make([]string, 0, 2)
	for f := range strings.SplitSeq(flag, ", ") {
		tag = append(tag, manBold(f))
	}
	s := strings.Join(tag, ", ")
	if o.arg != "" {
		s += " " + manItalic(o.arg)
	}
	m.raw(s)
	m.line(o.about() + more)
}

// isConnectionOption tells whether o is one that all verbs share which connect to a box.
func isConnectionOption(o *option) bool {
	return slices.ContainsFunc(connectionOptions, func(c option) bool { return c.name == o.name && c.help == o.help })
}

//go:noinline
func manBold(s string) string { return `\fB` + manEscape(s) + `\fR` }

//go:noinline
func manItalic(s string) string { return `\fI` + manEscape(s) + `\fR` }

// manEscape is s with what roff would take for its own, or show as a typographer does and
// nobody could copy into a shell, in the names of groff_char(7).
func manEscape(s string) string {
	return newReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`).Replace(s)
}
