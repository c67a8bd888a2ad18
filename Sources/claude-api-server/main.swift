import GRDB
import Configuration
import ArgumentParser
import Hummingbird
print("hi")
