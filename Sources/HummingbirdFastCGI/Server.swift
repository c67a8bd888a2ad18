import CFastCGI
import Hummingbird
