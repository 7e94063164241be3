// client_complete.go completes command lines. It prints scripts for three shells, each the
// same short program, written here, with the table of verbs in the shell's own words; and it
// answers the scripts' one question that a table cannot: which boxes are known, and what is
// on one. It is apart from client_help.go because that question connects to a box. Whoever
// asks it presses Tab in the middle of a line: it never prompts, prints nothing but names,
// and takes no longer than completeTime.

package main

import (
	"bufio"
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// completeVerb asks for names: berth __complete WORD VERB [WORDS before it ...].
	completeVerb = "__complete"
	// completeTime is how long somebody who has pressed Tab waits without wondering.
	completeTime = 2 * time.Second
	// completeNames bounds what is offered: more than that nobody reads, and bash sorts
	// all of it.
	completeNames = 2000
)

// --- names ---

// runComplete prints what the last word of a command line of the client may become, one a
// line: "box:" for boxes, "box:photos/" for what is on one, and for exec the commands that
// the user may run. What goes wrong is no one's business: then there are no names.
func runComplete(args []string, stdout io.Writer) int {
	out := bufio.NewWriter(stdout)
	defer out.Flush()
	if len(args) < 2 {
		return exitUsage
	}
	word, v := args[0], findVerb(args[1])
	if v == nil || !v.client {
		return exitOK
	}
	// A process without a terminal cannot prompt, whatever it finds missing.
	if tty, err := os.OpenFile("/dev/tty", os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
		unix.IoctlSetInt(int(tty.Fd()), unix.TIOCNOTTY, 0)
		tty.Close()
	}
	ctx, cancel := context.WithTimeout(context.Background(), completeTime)
	defer cancel()
	inv := &invocation{verb: v, stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, ctx: ctx}
	inv.read(args[2:]) // what is missing is still to be typed; -p and --key are what counts
	defer func() {
		for _, b := range inv.boxes {
			b.close()
		}
	}()
	offer := func(name string) {
		if beginsWith(name, word) && shownText(name) == name {
			out.WriteString(name + "\n")
		}
	}
	kind, _ := v.completes()
	colon, slash := strings.IndexByte(word, ':'), strings.IndexByte(word, '/')
	switch {
	case v.command && len(inv.args) > 0:
		if len(inv.tail) == 0 {
			inv.completeCommands(inv.args[0], offer)
		}
	case colon >= 0 && (slash < 0 || colon < slash):
		inv.completeNames(word, kind, offer)
	case slash < 0:
		user := word[:strings.LastIndexByte(word, '@')+1]
		end := ""
		if kind == completeRemote || kind == completeBoth {
			end = ":"
		}
		for _, name := range hostNames() {
			offer(user + name + end)
		}
	}
	return exitOK
}

// hostNames are the boxes that config.toml and known_hosts name, as they are typed before
// ":". An IPv6 address is not among them: nobody begins to type one from memory.
func hostNames() []string {
	var names []string
	if c, err := loadHosts(); err == nil {
		for name := range c.Hosts {
			names = append(names, name)
		}
	}
	if file := knownHosts(); file != "" {
		data, _ := readConfigBytes(file, maxKnownHosts)
		pins, _ := parsePins(file, data, func(string) bool { return true })
		for _, p := range pins {
			if host, _ := splitPin(p.host); !hasText(host, ":") {
				names = append(names, host)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// completeCommands offers the named commands of a box.
func (inv *invocation) completeCommands(word string, offer func(string)) {
	p, err := inv.hostPlace(word)
	if err != nil {
		return
	}
	c, err := p.box.main()
	if err != nil {
		return
	}
	for _, name := range c.welcome.Commands {
		offer(name)
	}
}

// completeNames offers what is in the directory on a box that word names, or began to
// name. Names with a dot in front are offered to who has typed the dot.
func (inv *invocation) completeNames(word, kind string, offer func(string)) {
	if kind == completeHosts {
		return
	}
	head := word[:max(strings.LastIndexByte(word, '/'), strings.LastIndexByte(word, ':'))+1]
	if t, err := parseTarget(word); err == nil && strings.HasSuffix(word, t.path) {
		head = word[:len(word)-len(t.path)+strings.LastIndexByte(t.path, '/')+1] // names may have ":" in them
	}
	p, err := inv.place(head)
	if err != nil || p.box == nil {
		return
	}
	c, err := p.box.main()
	if err != nil {
		return
	}
	directories := kind == completeHostDir || kind == completeExec
	dir, letters := p.path, newReplacer()
	if !directories { // names with "*" in them would be patterns
		dir, letters = p.plain(), newReplacer("*", `\*`, "?", `\?`, "[", `\[`)
	}
	hidden := beginsWith(word[len(head):], ".")
	left := completeNames
	c.list(dir, false, func(line []byte) error {
		var e treeEntry
		if err := parseListLine(line, &e); err != nil {
			return err
		}
		switch {
		case beginsWith(e.name, ".") != hidden || badRemoteName(e.name) != "":
			return nil
		case e.kind == 'd':
			offer(head + letters.Replace(e.name) + "/")
		case !directories:
			offer(head + letters.Replace(e.name))
		}
		if left--; left == 0 {
			return newError("enough")
		}
		return nil
	})
}

// --- the scripts ---

// What a value, or an argument, is completed with.
const (
	completeNothing = ""
	completeFiles   = "file"   // files here
	completeHosts   = "host"   // box
	completeHostDir = "dir"    // box, box:DIR/
	completeRemote  = "remote" // box:PATH
	completeBoth    = "both"   // box:PATH, or files here
	completeExec    = "exec"   // box or box:DIR/, then a command there
	completeVerbs   = "verb"
)

// completes tells what the arguments of a verb are completed with; words for some.
func (v *verb) completes() (kind string, words []string) {
	switch {
	case len(v.values) > 0:
		return completeNothing, v.values
	case v.command:
		return completeExec, nil
	case v.words == hostWords && hasText(v.args, "[:DIR]"):
		return completeHostDir, nil
	}
	return [...]string{noWords: completeNothing, hostWords: completeHosts, remoteWords: completeRemote,
		localWords: completeFiles, bothWords: completeBoth, verbWords: completeVerbs}[v.words], nil
}

// completes tells what the value of an option is completed with.
//
//go:noinline
func (o *option) completes() (kind string, words []string) {
	switch {
	case len(o.values) > 0:
		return completeNothing, o.values
	case inList([]string{"FILE", "DIR", "PATH"}, o.arg):
		return completeFiles, nil
	case o.arg == "HOST":
		return completeHosts, nil
	}
	return completeNothing, nil
}

// completedVerbs is the table as the scripts need it: verbs of berth user are verbs of
// two words.
func completedVerbs() []verb {
	list := verbs()
	for i := range userVerbs {
		u := &userVerbs[i]
		list = append(list, verb{name: "user " + u.name, help: u.purpose, options: userOptions(u)})
	}
	return list
}

// completedNames are the words of the table that may stand behind before, "" or "user ".
func completedNames(list []verb, before string) []verb {
	var found []verb
	for _, v := range list {
		if name, ok := cutPrefix(v.name, before); ok && !hasText(name, " ") {
			v.name = name
			found = append(found, v)
		}
	}
	return found
}

//go:noinline
func joinedNames(list []verb) string {
	var names []string
	for i := range list {
		names = append(names, list[i].name)
	}
	return strings.Join(names, " ")
}

func runCompletion(inv *invocation) error {
	var script string
	switch inv.args[0] {
	case "bash":
		script = completionBash()
	case "zsh":
		script = completionZsh()
	case "fish":
		script = completionFish()
	default:
		return usageErr("there is no completion for %s; there is for %s", configQuote(inv.args[0]), strings.Join(inv.verb.values, ", "))
	}
	_, err := io.WriteString(inv.stdout, script)
	return err
}

// completionBash is the script for bash. Its table has for each verb what arguments are
// and the options: -l for a switch, -p= for one with a value, and behind "=" what the
// value is completed with, @file and @host or words.
func completionBash() string {
	var b builder
	list := completedVerbs()
	b.WriteString("# bash completion for berth, made by: berth completion bash\n\n_berth_table() {\n\tcase $1 in\n")
	b.WriteString("\t'') args='" + joinedNames(completedNames(list, "")) + " --help --version' ;;\n")
	for i := range list {
		v := &list[i]
		kind, words := v.completes()
		args := strings.Join(words, " ")
		switch {
		case v.raw:
			args = joinedNames(completedNames(list, v.name+" "))
		case kind == completeVerbs:
			args = joinedNames(completedNames(list, ""))
		case kind != completeNothing:
			args = "@" + kind
		}
		var options []string
		for k := range v.options {
			o := &v.options[k]
			value := ""
			if o.arg != "" {
				kind, words := o.completes()
				if value = "=" + strings.Join(words, ","); kind != completeNothing {
					value = "=@" + kind
				}
			}
			if o.short != 0 {
				options = append(options, "-"+string(rune(o.short))+value)
			}
			options = append(options, "--"+o.name+value)
		}
		if !v.raw {
			options = append(options, "--help")
		}
		b.WriteString("\t" + completeQuote(v.name) + ") args='" + args + "' opts='" + strings.Join(options, " ") + "' ;;\n")
	}
	b.WriteString("\t*) return 1 ;;\n\tesac\n}\n" + completeBash)
	return b.String()
}

// completionZsh is the script for zsh: calls of _arguments, with the table's help.
func completionZsh() string {
	var b builder
	list := completedVerbs()
	action := func(kind string, words []string) string {
		switch {
		case len(words) > 0:
			return "(" + strings.Join(words, " ") + ")"
		case kind == completeFiles:
			return "_files"
		case kind == completeNothing:
			return " "
		}
		if kind == completeBoth || kind == completeVerbs {
			return "_berth_" + kind
		}
		return "_berth_names"
	}
	b.WriteString("#compdef berth\n# zsh completion for berth, made by: berth completion zsh\n\n_berth_verb() {\n")
	for _, before := range []string{"", "user "} {
		b.WriteString("\tlocal -a " + strings.TrimSpace(before) + "verbs=(\n")
		for _, v := range completedNames(list, before) {
			b.WriteString("\t\t" + completeQuote(v.name+":"+v.help) + "\n")
		}
		b.WriteString("\t)\n")
	}
	b.WriteString("\tif [[ $1 == user ]]; then _describe -t commands command userverbs; else _describe -t commands command verbs; fi\n}\n\n_berth_words() {\n\tcase $1 in\n")
	for i := range list {
		v := &list[i]
		if v.raw {
			continue
		}
		b.WriteString("\t" + completeQuote(v.name) + ") _arguments -s -S")
		kind, words := v.completes()
		if v.command {
			b.WriteString(" -A '-*'")
		}
		b.WriteString(" : '(- *)'{-h,--help}'[tell about this command]'")
		for k := range v.options {
			b.WriteString(" \\\n\t\t" + zshOption(&v.options[k], action))
		}
		many := "*"
		if v.max == 1 {
			many = "1"
		}
		switch {
		case v.command:
			b.WriteString(" \\\n\t\t'1:HOST:_berth_names' '2:command:_berth_names' '*:argument:()'")
		case kind != completeNothing || len(words) > 0:
			b.WriteString(" \\\n\t\t" + completeQuote(many+":"+zshColons(v.args)+":"+action(kind, words)))
		case beginsWith(v.name, "user ") || v.max != 0:
			b.WriteString(" \\\n\t\t'*:argument:()'")
		}
		b.WriteString(" ;;\n")
	}
	b.WriteString("\tesac\n}\n" + completeZsh)
	return b.String()
}

// zshOption is a specification for _arguments.
func zshOption(o *option, action func(string, []string) string) string {
	help := "[" + newReplacer(`\`, `\\`, "[", `\[`, "]", `\]`).Replace(o.help) + "]"
	if o.arg != "" {
		kind, words := o.completes()
		help += ":" + zshColons(o.arg) + ":" + action(kind, words)
	}
	long, short, star := "--"+o.name, "-"+string(rune(o.short)), ""
	flags, both := []string{long}, long
	if o.short != 0 {
		flags, both = []string{short, long}, short+" "+long
	}
	if o.arg != "" {
		for i := range flags {
			flags[i] += "+"
			if beginsWith(flags[i], "--") {
				flags[i] = strings.TrimSuffix(flags[i], "+") + "="
			}
		}
	}
	if o.multi {
		star = "*"
	} else {
		star = "(" + both + ")"
	}
	if len(flags) == 1 {
		return completeQuote(star + flags[0] + help)
	}
	return completeQuote(star) + "{" + strings.Join(flags, ",") + "}" + completeQuote(help)
}

func zshColons(s string) string { return strings.ReplaceAll(s, ":", `\:`) }

// completionFish is the script for fish. An option that several verbs have is one line.
func completionFish() string {
	var b builder
	list := completedVerbs()
	b.WriteString("# fish completion for berth, made by: berth completion fish\n" + completeFish)
	for _, before := range []string{"", "user"} {
		for _, v := range completedNames(list, strings.TrimLeft(before+" ", " ")) {
			condition := "__berth_at 1"
			if before != "" {
				condition = "__berth_at 2 " + before
			}
			b.WriteString("complete -c berth -n " + completeQuote(condition) + " -a " + v.name + " -d " + fishQuote(v.help) + "\n")
		}
	}
	var lines []string
	takers := map[string][]string{}
	add := func(v *verb, line string) {
		if takers[line] == nil {
			lines = append(lines, line)
		}
		takers[line] = append(takers[line], fishQuote(v.name))
	}
	value := func(kind string, words []string) string {
		switch {
		case len(words) > 0:
			return " -a " + fishQuote(strings.Join(words, " "))
		case kind == completeFiles:
			return " -F"
		case kind == completeBoth:
			return " -F -a '(__berth_names)'"
		case kind == completeVerbs:
			return " -a " + fishQuote(joinedNames(completedNames(list, "")))
		case kind != completeNothing:
			return " -a '(__berth_names)'"
		}
		return ""
	}
	for i := range list {
		v := &list[i]
		if kind, words := v.completes(); kind != completeNothing || len(words) > 0 {
			add(v, value(kind, words))
		}
		if !v.raw {
			add(v, " -s h -l help -d 'tell about this command'")
		}
		for k := range v.options {
			o := &v.options[k]
			line := " -l " + o.name
			if o.short != 0 {
				line = " -s " + string(rune(o.short)) + line
			}
			if o.arg != "" {
				line += " -r" + value(o.completes())
			}
			add(v, line+" -d "+fishQuote(o.help))
		}
	}
	for _, line := range lines {
		b.WriteString("complete -c berth -n " + fishQuote("__berth_is "+strings.Join(takers[line], " ")) + line + "\n")
	}
	return b.String()
}

// completeQuote is s as one word of bash and zsh.
//
//go:noinline
func completeQuote(s string) string {
	if s != "" {
		return shellQuote(s)
	}
	return "''"
}

// fishQuote is s as one word of fish.
func fishQuote(s string) string {
	if s == shellQuote(s) {
		return s
	}
	return "'" + newReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
}

const completeBash = `
# _berth_names asks berth which boxes it knows, or what is on one.
_berth_names() {
	berth __complete "$word" "${words[@]:1}" 2>/dev/null </dev/null
}

# _berth_offer takes names, and puts into COMPREPLY what bash has to put in place of what it
# takes for the current word: without what is before the last ":" or "=", quoted as the rest.
# lead is what stands before the word that names complete: --color=.
_berth_offer() {
	local name
	for name; do
		[[ $name == "$word"* ]] || continue
		[[ $name == *[/:=] ]] && compopt -o nospace
		name=$lead$name
		name=${name:cut}
		case $quote in
		\') name=${name//\'/\'\\\'\'} ;;
		\") name=${name//\\/\\\\} name=${name//\"/\\\"} name=${name//\$/\\\$} name=${name//\` + "`" + `/\\\` + "`" + `} ;;
		'') [[ $name ]] && printf -v name %q "$name" ;;
		esac
		COMPREPLY+=("$name")
	done
}

# _berth_complete offers what a kind of the table stands for.
_berth_complete() {
	local names=() i IFS=$'\n'
	case $1 in
	@file) compopt -o bashdefault -o default ;;
	@both)
		[[ ${word%%/*} == *:* ]] || mapfile -t names < <(compgen -f -- "$word")
		if [[ ${#names[@]} -gt 0 ]]; then
			for ((i = 0; i < ${#names[@]}; i++)); do
				[[ -d ${names[i]} ]] && names[i]+=/
			done
		fi
		mapfile -t -O ${#names[@]} names < <(_berth_names)
		;;
	@*) mapfile -t names < <(_berth_names) ;;
	*)
		IFS=$' ,\n'
		names=($1)
		;;
	esac
	_berth_offer "${names[@]}"
}

_berth() {
	COMPREPLY=()
	# bash breaks words at ":", "@" and "=", so the line is taken apart here: words are those
	# before the current one, word is that as berth would get it, quote is the quote that is
	# open in it, and cut how much of it is before what bash takes for the current word.
	local line=${COMP_LINE:0:COMP_POINT} words=() word='' quote='' began='' cut=0 i c
	for ((i = 0; i < ${#line}; i++)); do
		c=${line:i:1}
		if [[ $quote == "'" && $c != "'" ]]; then
			word+=$c
		elif [[ $c == "$quote" ]]; then
			quote=''
		elif [[ $c == \\ ]]; then
			((++i))
			word+=${line:i:1} began=1
		elif [[ $quote ]]; then
			word+=$c
		elif [[ $c == [\'\"] ]]; then
			quote=$c began=1 cut=${#word}
		elif [[ $c == [[:space:]] ]]; then
			[[ $began ]] && words+=("$word")
			word='' began='' cut=0
		else
			word+=$c began=1
			[[ $COMP_WORDBREAKS == *"$c"* ]] && cut=${#word}
			[[ $c == @ && $cut -eq ${#word} ]] && ((cut--)) # stays with what is behind it
		fi
	done

	local verb='' args='' opts='' first=1
	if [[ ${words[1]} == user && ${#words[@]} -gt 2 ]]; then
		verb="user ${words[2]}" first=3
	elif [[ ${#words[@]} -gt 1 ]]; then
		verb=${words[1]} first=2
	fi
	_berth_table "$verb" || return

	# What is before the word: how many arguments, and whether an option waits for its value.
	local o w n=0 ended='' wants='' lead=''
	for w in "${words[@]:first}"; do
		if [[ $wants ]]; then
			wants=''
		elif [[ $w == -- && ! $ended ]]; then
			ended=1
		elif [[ $w == -?* && ! $ended ]]; then
			[[ $w == --* ]] || w=-${w: -1}
			for o in $opts; do
				[[ ${o%%=*} == "$w" && $o == *=* ]] && wants==${o#*=}
			done
		else
			((n++))
			[[ $args == @exec ]] && ended=1
		fi
	done

	if [[ $wants ]]; then
		_berth_complete "${wants#=}"
	elif [[ $word == --*=* && ! $ended ]]; then
		for o in $opts; do
			if [[ $o == "${word%%=*}="* ]]; then
				lead=${word%%=*}= word=${word#*=}
				_berth_complete "${o#*=}"
			fi
		done
	elif [[ $word == -* && ! $ended ]]; then
		for o in $opts; do
			[[ $o == --* ]] && _berth_offer "${o%%=*}"
		done
	elif [[ $args == @exec ]]; then
		case $n in
		0 | 1) _berth_complete "$args" ;;
		esac
	elif [[ $args == @* || $n -eq 0 ]]; then
		_berth_complete "$args"
	fi
}

complete -F _berth berth
`

const completeZsh = `
# _berth_names offers what berth knows: boxes, what is on one, or commands there.
_berth_names() {
	local word=${(Q)PREFIX} head name
	local -a names open whole
	names=(${(f)"$(berth __complete "$word" "${(@Q)before}" 2>/dev/null </dev/null)"})
	compset -P '*/' || compset -P '*:'
	head=${(Q)IPREFIX}
	for name in $names; do
		if [[ $name == *[/:] ]]; then open+=(${name#$head}); else whole+=(${name#$head}); fi
	done
	compadd -S '' -- $open
	compadd -- $whole
	((${#names}))
}

_berth_both() {
	if [[ ${${(Q)PREFIX}%%/*} == *:* ]]; then
		_berth_names
	else
		_alternative 'files:file:_files' 'boxes:box:_berth_names'
	fi
}

_berth() {
	local curcontext=$curcontext verb=${words[2]}
	local -a before=("${(@)words[2,CURRENT-1]}") # for _berth_names
	if ((CURRENT == 2)); then
		_berth_verb
	elif [[ $verb == user ]] && ((CURRENT == 3)); then
		_berth_verb user
	else
		[[ $verb == user ]] && verb="user ${words[3]}"
		curcontext=${curcontext%:*}-${verb// /-}:
		shift words
		((CURRENT--))
		if [[ $verb == user\ * ]]; then
			shift words
			((CURRENT--))
		fi
		_berth_words "$verb"
	fi
}

if [[ $funcstack[1] == _berth ]]; then _berth "$@"; else compdef _berth berth; fi
`

const completeFish = `
# __berth_at tells whether the word at that place is being typed, and those before are these.
function __berth_at
    set -l words (commandline -opc)
    test (count $words) -eq $argv[1]; and test "$words[2..-1]" = "$argv[2..-1]"
end

# __berth_is tells whether the verb is one of these; of those of berth user, two words.
function __berth_is
    set -l words (commandline -opc)
    set -l verb $words[2]
    test "$verb" = user; and set verb "user $words[3]"
    contains -- "$verb" $argv
end

# __berth_names asks berth which boxes it knows, what is on one, or which commands.
function __berth_names
    set -l words (commandline -opc)
    set -l word (commandline -ct)
    set word (string unescape -- $word; or string trim -l -c "'\"" -- $word)
    berth __complete "$word" $words[2..-1] 2>/dev/null </dev/null
end

complete -c berth -f
`
